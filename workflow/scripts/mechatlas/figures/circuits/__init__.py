"""Figures of circuits: data frame in, figure out."""
