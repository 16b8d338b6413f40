"""How results were made: versions and provenance as rows of a table."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "sentence-transformers",
    "matplotlib",
)


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and of the libraries that results depend on."""
    rows = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return rows


def made_rows(*provenances: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return versions and the facts of provenance records, nested keys joined by dots, each fact once."""
    rows = versions()
    for record in provenances:
        for key, value in _flat(record):
            # The same input occurs in several records; its last two names say what it is.
            row = (".".join(key.split(".")[-2:]), value)
            if row not in rows:
                rows.append(row)
    return rows


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)
