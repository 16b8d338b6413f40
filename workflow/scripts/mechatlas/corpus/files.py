"""Text files of several kinds, read piece by piece."""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from mechatlas.io import UserError

ROWS_PER_READ = 1000


def expand_files(source: str, patterns: Sequence[str | Path]) -> list[Path]:
    """Return the files that paths and globs name, sorted, each once."""
    found: set[Path] = set()
    for pattern in map(str, patterns):
        matches = [Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]
        if not matches:
            raise UserError(
                f"sources.{source}.files: {pattern} matches no file; correct the path or the pattern"
            )
        found.update(matches)
    return sorted(found)


def text_reader(source: str, path: Path) -> Callable[[Path, str], Iterator[str]]:
    """Return the function (path, text_key) -> texts that reads a file of this kind.

    Raises
    ------
    UserError
        If the ending of the file's name is none of ``.txt``, ``.jsonl``, ``.jsonl.zst``, ``.parquet``.
    """
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader
    raise UserError(f"sources.{source}.files: {path} is of no known kind; use {', '.join(READERS)}")


def read_parquet(path: Path, text_key: str) -> Iterator[str]:
    """Yield a column of texts of a Parquet file; a null becomes an empty text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if text_key not in file.schema_arrow.names:
            raise _no_text(path, text_key, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=[text_key]):
            yield from (text or "" for text in batch.column(0).cast(pa.string()).to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a valid Parquet file ({error}); restore the file"
        ) from error


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, with their ends.

    Raises
    ------
    UserError
        If the file cannot be opened or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            yield from handle
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); correct the path or its permissions"
        ) from error


def zstandard_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a zstandard-compressed UTF-8 text file, with their ends."""
    import zstandard

    try:
        with (
            open(path, "rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream,
        ):
            yield from _text(stream)
    except zstandard.ZstdError as error:
        raise UserError(
            f"{path} is not valid zstandard data ({error}); restore the file"
        ) from error


def _text(stream: Any) -> TextIO:
    return io.TextIOWrapper(stream, encoding="utf-8")


def _read_txt(path: Path, text_key: str) -> Iterator[str]:
    yield "".join(read_lines(path))


def _read_jsonl(path: Path, text_key: str) -> Iterator[str]:
    yield from _json_texts(read_lines(path), path, text_key)


def _read_jsonl_zst(path: Path, text_key: str) -> Iterator[str]:
    yield from _json_texts(zstandard_lines(path), path, text_key)


READERS = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl_zst,
    ".parquet": read_parquet,
}


def _json_texts(lines: Iterable[str], path: Path, text_key: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            row = json.loads(line) if line.strip() else {text_key: ""}
            text = row.get(text_key) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise _no_text(
                    f"{path}, line {number}", text_key, row if isinstance(row, dict) else []
                )
            yield text
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}, after line {max(number - 1, 0)}: not JSON Lines in UTF-8 ({error}); restore the file"
        ) from error


def _no_text(where: str | Path, text_key: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{where} holds no text under {text_key!r} (it has {', '.join(names) or 'no keys'}); "
        "set text_key of the source"
    )
