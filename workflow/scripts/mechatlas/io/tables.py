"""Parquet tables written piece by piece, so that memory is bounded by a piece."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mechatlas.io.artefacts import PROVENANCE_KEY
from mechatlas.io.atomic import atomic_path


@contextlib.contextmanager
def table_writer(
    path: str | Path, schema: Any, facts: Mapping[str, Any]
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that appends a pyarrow table, as a row group of its own, to a Parquet file.

    The file appears, whole and with provenance, when the block ends without an exception.
    """
    import pyarrow.parquet as pq

    record = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    schema = schema.with_metadata({PROVENANCE_KEY: record})
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        yield lambda table: writer.write_table(table.cast(schema))
