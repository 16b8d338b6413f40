"""Figures at the widths of a journal, each with the data behind it and a caption."""
