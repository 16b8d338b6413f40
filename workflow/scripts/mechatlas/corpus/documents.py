"""Document sources: generated text, or text files of several kinds, behind one interface."""

from __future__ import annotations

import glob
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.corpus.document import Document
from mechatlas.io import UserError, progress, provenance
from mechatlas.io.tables import table_writer

logger = logging.getLogger("mechatlas")

DOCUMENTS_PER_ROW_GROUP = 1000


def prepare_documents(
    path: str | Path,
    *,
    source: str,
    settings: Mapping[str, Any],
    files: Sequence[str | Path] = (),
    seed: int = 0,
) -> int:
    """Write the documents of a source as Parquet with the columns ``doc`` (unique) and ``text``.

    Parameters
    ----------
    path : str or Path
        The file to write.
    source : str
        The source's key in the config (for messages and provenance).
    settings : mapping
        Its entry: ``kind`` (synthetic or text), ``documents`` (the largest number; all if null) and the
        keys of that kind (see `read_documents`).
    files : sequence of paths or globs
        For ``kind: text``.
    seed : int
        For ``kind: synthetic``.

    Returns
    -------
    int
        Number of documents written.

    Raises
    ------
    UserError
        If a file is missing or unreadable, or the source holds no text.
    """
    import pyarrow as pa

    limit = settings.get("documents")
    documents = itertools.islice(read_documents(source, settings, files, seed), limit)
    documents = progress(documents, total=limit, desc=f"documents of {source}", unit="documents")
    schema = pa.schema([("doc", pa.string()), ("text", pa.string())])
    facts = provenance(
        source=source, settings=dict(settings), seed=seed, files=list(map(str, files))
    )
    count = 0
    with table_writer(path, schema, facts) as write:
        for batch in _batches(documents, DOCUMENTS_PER_ROW_GROUP):
            columns = {"doc": [d.doc_id for d in batch], "text": [d.text for d in batch]}
            write(pa.table(columns, schema=schema))
            count += len(batch)
        if count == 0:
            where = ", ".join(map(str, files)) or "the generator"
            raise UserError(
                f"sources.{source}: the corpus is empty ({where} gave no text); "
                "name files that hold text, or ask for at least one document"
            )
    logger.info("%s: %d documents", source, count)
    return count


def read_documents(
    source: str, settings: Mapping[str, Any], files: Sequence[str | Path] = (), seed: int = 0
) -> Iterator[Document]:
    """Yield the documents of a source one by one.

    ``kind: synthetic`` takes ``style`` and ``documents``. ``kind: text`` reads ``.txt`` (a file is a document),
    ``.jsonl``, ``.jsonl.zst`` and ``.parquet`` files (a row is a document, its text under ``text_key``) and cuts
    ``.txt`` files at ``split_on`` if that is set. Texts of nothing but white space are left out.
    """
    kind = settings.get("kind")
    if kind == "synthetic":
        from mechatlas.corpus.synthetic import generate_documents

        yield from generate_documents(settings["style"], settings["documents"], seed)
    elif kind == "text":
        for path in expand_files(source, files):
            texts = _reader(source, path)(path, settings.get("text_key", "text"))
            separator = settings.get("split_on") if path.suffix == ".txt" else None
            pieces = (p for text in texts for p in (text.split(separator) if separator else [text]))
            for number, piece in enumerate(filter(str.strip, pieces)):
                yield Document(f"{path}#{number}", piece.replace("\r\n", "\n"))
    else:
        raise UserError(f"sources.{source}.kind: {kind!r} is unknown; choose synthetic or text")


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


def _reader(source: str, path: Path) -> Callable[[Path, str], Iterator[str]]:
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader
    raise UserError(f"sources.{source}.files: {path} is of no known kind; use {', '.join(READERS)}")


def _read_txt(path: Path, text_key: str) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8"
        ) from error


def _read_jsonl(path: Path, text_key: str) -> Iterator[str]:
    with open(path, encoding="utf-8") as handle:
        yield from _json_texts(handle, path, text_key)


def _read_jsonl_zst(path: Path, text_key: str) -> Iterator[str]:
    import zstandard

    try:
        with (
            open(path, "rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream,
        ):
            yield from _json_texts(io.TextIOWrapper(stream, encoding="utf-8"), path, text_key)
    except zstandard.ZstdError as error:
        raise UserError(
            f"{path} is not valid zstandard data ({error}); restore the file"
        ) from error


def _read_parquet(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if text_key not in file.schema_arrow.names:
            raise _no_text(path, text_key, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=DOCUMENTS_PER_ROW_GROUP, columns=[text_key]):
            yield from (text or "" for text in batch.column(0).cast(pa.string()).to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a valid Parquet file ({error}); restore the file"
        ) from error


READERS = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl_zst,
    ".parquet": _read_parquet,
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


def _batches(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
