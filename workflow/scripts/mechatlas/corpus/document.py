"""What a document is, whatever source it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with the identifier by which it is split, sampled and cited.

    Attributes
    ----------
    doc_id : str
        Unique within its source and stable between runs.
    text : str
        The text, with ``\\n`` line ends.
    """

    doc_id: str
    text: str
