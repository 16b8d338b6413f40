"""Reading and writing the files between stages: Parquet, JSON Lines, JSON, safetensors, text.

Every writer is atomic and stores the provenance of what it writes: in the file's own metadata for Parquet and
safetensors, in a ``<file>.provenance.json`` beside it for the others. Every reader turns a missing or damaged
file into a `UserError` that says how to make it again. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas import __version__
from mechatlas.io.atomic import atomic_path
from mechatlas.io.errors import UserError

PROVENANCE_KEY = "mechatlas"


def provenance(**facts: Any) -> dict[str, Any]:
    """Return the provenance record of an artefact: the given facts plus the code version.

    Facts are plain JSON values such as ``model``, ``model_hash``, ``source``, ``source_hash``, ``seed``,
    ``config_hash``; time and host are left out so that equal inputs give equal bytes.
    """
    return {"version": __version__, **facts}


def write_table(path: str | Path, table: Any, facts: Mapping[str, Any]) -> None:
    """Write a pandas data frame or a pyarrow table as Parquet (zstd) with provenance in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(table.schema.metadata or {}), PROVENANCE_KEY.encode(): _dumps(facts).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_table(path: str | Path, columns: Sequence[str] | None = None, filters: Any = None) -> Any:
    """Read a Parquet file into a pandas data frame.

    Raises
    ------
    UserError
        If the file is missing, truncated, damaged, or lacks one of ``columns``.
    """
    return read_columns(path, columns, filters).to_pandas()


def read_columns(
    path: str | Path, columns: Sequence[str] | None = None, filters: Any = None
) -> Any:
    """Read a Parquet file into a pyarrow table (see `read_table`), which holds texts in a fraction of the memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _require(path)
    try:
        return pq.read_table(path, columns=columns, filters=filters)
    except (pa.ArrowInvalid, OSError, pa.ArrowKeyError) as error:
        raise _damaged(path, error) from error


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Return the provenance record of an artefact written by this module ({} if it has none)."""
    path = Path(path)
    _require(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        raw = (pq.read_schema(path).metadata or {}).get(PROVENANCE_KEY.encode())
        return json.loads(raw) if raw else {}
    if path.suffix == ".safetensors":
        return json.loads(_safetensors_metadata(path).get(PROVENANCE_KEY, "{}"))
    sidecar = provenance_path(path)
    return json.loads(sidecar.read_text()) if sidecar.exists() else {}


def provenance_path(path: str | Path) -> Path:
    """Return where the provenance of a text artefact is kept."""
    return Path(f"{path}.provenance.json")


def write_jsonl(path: str | Path, records: Iterable[Any], facts: Mapping[str, Any]) -> None:
    """Write records as JSON Lines (keys in the order given) with a provenance sidecar."""
    _write_text(path, "".join(_dumps(record) + "\n" for record in records), facts)


def read_jsonl(path: str | Path) -> list[Any]:
    """Read a JSON Lines file; raise `UserError` naming the line that is not JSON."""
    _require(path)
    records = []
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise _damaged(f"{path}, line {number}", error) from error
    return records


def write_json(path: str | Path, value: Any, facts: Mapping[str, Any]) -> None:
    """Write one JSON document, indented, with a provenance sidecar."""
    _write_text(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", facts
    )


def read_json(path: str | Path) -> Any:
    """Read one JSON document; raise `UserError` if it is missing or damaged."""
    _require(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def write_text(path: str | Path, text: str, facts: Mapping[str, Any] | None = None) -> None:
    """Write a text file atomically, with a provenance sidecar if facts are given."""
    _write_text(path, text, facts)


def write_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> None:
    """Write named NumPy arrays as safetensors with provenance in the header."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={PROVENANCE_KEY: _dumps(facts)})


def read_arrays(path: str | Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read named arrays (all by default) from a safetensors file.

    Raises
    ------
    UserError
        If the file is missing, truncated or damaged, or lacks one of ``names``.
    """
    from safetensors import SafetensorError, safe_open

    _require(path)
    try:
        with safe_open(path, framework="numpy") as handle:
            return {name: handle.get_tensor(name) for name in (names or sorted(handle.keys()))}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _safetensors_metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            return handle.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _write_text(path: str | Path, text: str, facts: Mapping[str, Any] | None) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if facts is not None:
        with atomic_path(provenance_path(path)) as temporary:
            temporary.write_text(_dumps(facts) + "\n", encoding="utf-8")


def _dumps(value: Any) -> str:
    # NaN is not JSON: a missing number must be null, so refuse it here rather than write a broken file.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _require(path: str | Path) -> None:
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; run the rule that makes it (snakemake {path})")


def _damaged(path: str | Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{path} is damaged or truncated ({reason}); delete it and run snakemake again"
    )
