"""mechatlas: the library behind the pipeline (importable without Snakemake, pip-installable)."""

__version__ = "0.1.0"
