"""Document sources: generated text, text files, WikiText and StackExchange behind one interface."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.corpus.document import Document
from mechatlas.corpus.files import expand_files, text_reader
from mechatlas.corpus.stackexchange import dump_files, read_stackexchange
from mechatlas.corpus.wikitext import read_wikitext
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
        Its entry: ``kind`` (synthetic, text, wikitext or stackexchange), ``documents`` (the largest number; all if
        null) and the keys of that kind (see `read_documents`).
    files : sequence of paths or globs
        For every kind but ``synthetic``.
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
    # How many documents files hold is not known before they are read.
    total = limit if settings.get("kind") == "synthetic" else None
    documents = progress(documents, total=total, desc=f"documents of {source}", unit="documents")
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
    ``.txt`` files at ``split_on`` if that is set. ``kind: wikitext`` reads Parquet and text files of that corpus (an
    article is a document). ``kind: stackexchange`` reads what stackexchange-dataset wrote (a question with its
    answers is a document): the ``files``, or else everything in ``folder``. Texts of nothing but white space are left
    out.
    """
    kind = settings.get("kind")
    if kind == "synthetic":
        from mechatlas.corpus.synthetic import generate_documents

        yield from generate_documents(settings["style"], settings["documents"], seed)
    elif kind == "text":
        yield from _read_text(source, settings, expand_files(source, files))
    elif kind == "wikitext":
        yield from read_wikitext(source, expand_files(source, files))
    elif kind == "stackexchange":
        yield from read_stackexchange(
            [Path(f) for f in files] or dump_files(Path(settings["folder"]))
        )
    else:
        raise UserError(
            f"sources.{source}.kind: {kind!r} is unknown; choose synthetic, text, wikitext or stackexchange"
        )


def _read_text(
    source: str, settings: Mapping[str, Any], paths: Sequence[Path]
) -> Iterator[Document]:
    for path in paths:
        texts = text_reader(source, path)(path, settings.get("text_key", "text"))
        separator = settings.get("split_on") if path.suffix == ".txt" else None
        pieces = (p for text in texts for p in (text.split(separator) if separator else [text]))
        for number, piece in enumerate(filter(str.strip, pieces)):
            yield Document(f"{path}#{number}", piece.replace("\r\n", "\n"))


def _batches(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
