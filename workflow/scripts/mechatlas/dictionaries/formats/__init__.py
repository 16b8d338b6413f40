"""Formats in which others publish dictionaries."""
