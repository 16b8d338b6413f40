"""Data frames in; figures, tables and pages out. Nothing here computes a result."""
