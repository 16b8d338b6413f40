"""Token windows: cut from documents, split by document, sampled so that many documents are represented.

A window is BOS and ``window_len - 1`` consecutive tokens of one document. Windows of a document do not overlap.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mechatlas.io import UserError, progress, provenance, read_table, rng_for, seed_for
from mechatlas.io.tables import table_writer

logger = logging.getLogger("mechatlas")

SPLITS = ("train", "validation", "test")
WINDOWS_PER_ROW_GROUP = 1024


class Encoder(Protocol):
    """What windows need of a tokenizer."""

    bos_id: int

    def encode(self, text: str) -> list[int]:
        """Return token ids without special tokens."""


@dataclass(frozen=True)
class Windows:
    """Windows ``first``, ``first + 1`` ... of a table of windows.

    Attributes
    ----------
    tokens : int32 [n, T]
    docs : object [n]
        Document ids.
    splits : int8 [n]
        Index into `SPLITS`.
    starts : int32 [n]
        Where in the document's tokens the window's first token after BOS stands.
    pattern_sample : bool [n]
        Whether capture keeps the full patterns of the window.
    """

    tokens: np.ndarray
    docs: np.ndarray
    splits: np.ndarray
    starts: np.ndarray
    pattern_sample: np.ndarray
    first: int = 0

    def __len__(self) -> int:
        return len(self.docs)

    def __getitem__(self, part: slice) -> Windows:
        """Return the windows of a slice without step."""
        first, _, _ = part.indices(len(self))
        arrays = (self.tokens, self.docs, self.splits, self.starts, self.pattern_sample)
        return Windows(*(array[part] for array in arrays), first=self.first + first)

    @cached_property
    def doc_codes(self) -> np.ndarray:
        """An integer for each document, equal for equal documents (int64 [n])."""
        return np.unique(self.docs.astype(str), return_inverse=True)[1]


def sample_windows(
    documents: Iterable[tuple[str, str]],
    tokenizer: Encoder,
    *,
    windows: int,
    window_len: int,
    split: Mapping[str, float],
    pattern_windows: int = 0,
    seed: int = 0,
    n_ctx: int | None = None,
) -> Windows:
    """Cut windows from documents.

    Documents come in a seeded order; each round takes one more window of every document that has one left, until
    there are enough. The split of a document depends on the seed and its id only. In each split the first
    ``pattern_windows`` windows, which come from different documents as far as possible, are the pattern sample.

    Parameters
    ----------
    documents : iterable of (id, text)
        Of a sequence, only the documents that are needed are looked up, one at a time.
    tokenizer : Encoder
    windows : int
        How many windows; fewer if the documents do not hold as many.
    window_len : int
        Tokens per window, BOS included.
    split : mapping
        Share of each of `SPLITS`.
    pattern_windows : int
        Size of the pattern sample per split.
    seed : int
    n_ctx : int, optional
        The model's context.

    Raises
    ------
    UserError
        If a size is not positive, the window is longer than the context, no document is long enough, or a split
        gets no window.
    """
    _check_sizes(windows, window_len, pattern_windows, split, n_ctx)
    if not isinstance(documents, Sequence):
        documents = list(documents)
    if len(documents) == 0:
        raise UserError(
            "the corpus is empty: no documents to cut windows from; add text to the source"
        )
    order = rng_for(seed, "document order").permutation(len(documents))
    shuffled = (documents[i] for i in order.tolist())
    shuffled = progress(shuffled, total=len(order), desc="tokenising", unit="documents")
    pieces = list(_round_robin(shuffled, tokenizer, windows, window_len, seed))
    if len(pieces) < windows:
        logger.warning(
            "%d documents hold %d windows of %d tokens, fewer than the %d asked for: taking all",
            len(documents), len(pieces), window_len, windows,
        )  # fmt: skip
    docs = np.array([doc for doc, _, _ in pieces], dtype=object)
    splits = np.array([split_of(doc, split, seed) for doc in docs], dtype=np.int8)
    _check_splits(docs, splits, split, len(documents))
    return Windows(
        tokens=np.stack([tokens for _, _, tokens in pieces]),
        docs=docs,
        splits=splits,
        starts=np.array([start for _, start, _ in pieces], dtype=np.int32),
        pattern_sample=_first_of_each(splits, pattern_windows),
    )


def split_of(doc: str, split: Mapping[str, float], seed: int) -> int:
    """Return the split of a document as an index into `SPLITS`, by a hash of seed and document id."""
    u = seed_for(seed, "split", doc) / 2**63
    edges = np.cumsum([split.get(name, 0.0) for name in SPLITS])
    # Rounding may leave the last edge a little below 1.
    return min(int(np.searchsorted(edges, u * edges[-1], side="right")), len(SPLITS) - 1)


def write_windows(path: str | Path, windows: Windows, **facts: Any) -> None:
    """Write windows as Parquet: window, doc, split, start, pattern_sample, tokens."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("window", pa.int32()),
            ("doc", pa.string()),
            ("split", pa.string()),
            ("start", pa.int32()),
            ("pattern_sample", pa.bool_()),
            ("tokens", pa.list_(pa.int32())),
        ]
    )
    with table_writer(path, schema, provenance(**facts)) as write:
        for first in range(0, len(windows), WINDOWS_PER_ROW_GROUP):
            part = slice(first, first + WINDOWS_PER_ROW_GROUP)
            columns = {
                "window": np.arange(len(windows), dtype=np.int32)[part],
                "doc": windows.docs[part],
                "split": np.array(SPLITS, dtype=object)[windows.splits[part]],
                "start": windows.starts[part],
                "pattern_sample": windows.pattern_sample[part],
                "tokens": list(windows.tokens[part]),
            }
            write(pa.table(columns, schema=schema))


def read_windows(
    path: str | Path, first: int = 0, stop: int | None = None, *, tokens: bool = True
) -> Windows:
    """Read windows ``first`` to ``stop`` (exclusive; all by default) of a file of `write_windows`.

    With ``tokens=False`` the tokens are left out (shape ``[n, 0]``), for a large table of which only documents and
    splits matter.
    """
    columns = ["window", "doc", "split", "start", "pattern_sample"] + ["tokens"] * tokens
    filters = [("window", ">=", first)] + ([("window", "<", stop)] if stop is not None else [])
    table = read_table(path, columns, filters)
    if not set(table["split"]) <= set(SPLITS):
        raise UserError(f"{path} holds a split that is none of {', '.join(SPLITS)}; make it again")
    return Windows(
        tokens=np.stack(table["tokens"])
        if tokens and len(table)
        else np.zeros((len(table), 0), np.int32),
        docs=table["doc"].to_numpy(object),
        splits=table["split"].map({name: i for i, name in enumerate(SPLITS)}).to_numpy(np.int8),
        starts=table["start"].to_numpy(np.int32),
        pattern_sample=table["pattern_sample"].to_numpy(bool),
        first=first,
    )


def _round_robin(
    documents: Iterable[tuple[str, str]],
    tokenizer: Encoder,
    windows: int,
    window_len: int,
    seed: int,
) -> Iterable[tuple[str, int, np.ndarray]]:
    """Yield (document, start, tokens) of at most ``windows`` windows, round by round."""
    body = window_len - 1
    waiting: list[tuple[str, np.ndarray, list[int]]] = []
    taken, longest = 0, 0
    for doc, text in documents:
        ids = np.array(tokenizer.encode(text), dtype=np.int32)
        longest = max(longest, len(ids))
        starts = _starts(len(ids), body, seed, doc)
        if not starts:
            continue
        yield doc, starts[0], _window(tokenizer.bos_id, ids, starts[0], body)
        taken += 1
        if taken == windows:
            return
        waiting.append((doc, ids, starts))
    if taken == 0:
        raise UserError(
            f"sampling.window_len: {window_len} is longer than every document (the longest has {longest} "
            f"tokens, so at most {longest + 1} with BOS); use a shorter window or longer documents"
        )
    for turn in range(1, max(len(starts) for _, _, starts in waiting)):
        for doc, ids, starts in waiting:
            if turn < len(starts):
                yield doc, starts[turn], _window(tokenizer.bos_id, ids, starts[turn], body)
                taken += 1
                if taken == windows:
                    return


def _starts(length: int, body: int, seed: int, doc: str) -> list[int]:
    """Return the starts of all windows of a document, in a seeded order and at a seeded offset."""
    slots = length // body
    if slots == 0:
        return []
    rng = rng_for(seed, "windows", doc)
    offset = int(rng.integers(0, length - slots * body + 1))
    return [offset + int(slot) * body for slot in rng.permutation(slots)]


def _window(bos_id: int, ids: np.ndarray, start: int, body: int) -> np.ndarray:
    return np.concatenate([np.array([bos_id], np.int32), ids[start : start + body]])


def _first_of_each(splits: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(len(splits), bool)
    for code, name in enumerate(SPLITS):
        members = np.flatnonzero(splits == code)
        chosen[members[:count]] = True
        if len(members) < count:
            logger.warning("pattern sample: %s has %d windows of %d", name, len(members), count)
    return chosen


def _check_sizes(
    windows: int,
    window_len: int,
    pattern_windows: int,
    split: Mapping[str, float],
    n_ctx: int | None,
) -> None:
    for key, value, least in (
        ("windows", windows, 1),
        ("window_len", window_len, 2),
        ("pattern_windows", pattern_windows, 0),
    ):
        if value < least:
            raise UserError(f"sampling.{key}: {value} is too small; set it to at least {least}")
    if n_ctx is not None and window_len > n_ctx:
        raise UserError(
            f"sampling.window_len: {window_len} is longer than the model's context of {n_ctx} tokens; "
            f"set it to at most {n_ctx}"
        )
    if set(split) != set(SPLITS) or min(split.values()) < 0 or sum(split.values()) <= 0:
        raise UserError(f"sampling.split: {dict(split)} must give a share to {', '.join(SPLITS)}")


def _check_splits(
    docs: np.ndarray, splits: np.ndarray, split: Mapping[str, float], documents: int
) -> None:
    members = [set(docs[splits == code]) for code in range(len(SPLITS))]
    # By construction; a mistake here would make every held-out score worthless.
    assert sum(map(len, members)) == len(set(docs)), "a document is in two splits"
    counts = ", ".join(f"{name} {len(m)}" for name, m in zip(SPLITS, members, strict=True))
    if any(split[name] > 0 and not m for name, m in zip(SPLITS, members, strict=True)):
        raise UserError(
            f"sampling.split: {len(docs)} windows from {len(set(docs))} of {documents} documents leave a split "
            f"without documents ({counts}); use more documents, more windows or other shares"
        )
    logger.info("%d windows; documents: %s", len(docs), counts)
