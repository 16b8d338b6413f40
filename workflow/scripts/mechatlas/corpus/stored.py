"""The documents of a source, as `mechatlas.corpus.documents.prepare_documents` stored them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mechatlas.io import read_columns


class StoredDocuments(Sequence[tuple[str, str]]):
    """(id, text) of each document of a Parquet file; a text becomes a Python string only when it is asked for.

    Raises
    ------
    UserError
        If the file is missing, damaged, or has no columns ``doc`` and ``text``.
    """

    def __init__(self, path: str | Path) -> None:
        table = read_columns(path, ["doc", "text"])
        self._docs, self._texts = table["doc"], table["text"]

    def __len__(self) -> int:
        return len(self._docs)

    def __getitem__(self, place: int) -> tuple[str, str]:
        return self._docs[place].as_py(), self._texts[place].as_py()
