"""Files in and out: atomic writers, readers with clear errors, provenance, seeds, digests, progress."""

from mechatlas.io.artefacts import (
    provenance,
    provenance_path,
    read_arrays,
    read_columns,
    read_json,
    read_jsonl,
    read_provenance,
    read_table,
    write_arrays,
    write_json,
    write_jsonl,
    write_table,
    write_text,
)
from mechatlas.io.atomic import atomic_path, clean_temporaries
from mechatlas.io.digest import file_digest
from mechatlas.io.errors import UserError
from mechatlas.io.progress import progress
from mechatlas.io.seeds import rng_for, seed_for

__all__ = [
    "UserError",
    "atomic_path",
    "clean_temporaries",
    "file_digest",
    "progress",
    "provenance",
    "provenance_path",
    "read_arrays",
    "read_columns",
    "read_json",
    "read_jsonl",
    "read_provenance",
    "read_table",
    "rng_for",
    "seed_for",
    "write_arrays",
    "write_json",
    "write_jsonl",
    "write_table",
    "write_text",
]
