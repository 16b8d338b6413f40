"""Bounded stores of head events that keep the same events whatever the order of what is added.

Each is exact under merging: the selection from all events equals the selection from the selections of any parts.
"""

from __future__ import annotations

import numpy as np

NEGATIVES = ("same_query", "same_key", "same_distance")
ROLES = ("top", "quantile", "random")

_POSITION = [("query", "i4"), ("key", "i4")]
_VALUE = [("attention", "f4"), ("write_norm", "f4")]

EVENT = np.dtype(
    [("head", "i2"), ("window", "i4"), *_POSITION, *_VALUE, ("priority", "f8")]
    + [(f"{kind}_{name}", form) for kind in NEGATIVES for name, form in _POSITION + _VALUE]
)
"""One candidate event of a layer. ``priority`` belongs to the quantile sample; the matched negatives of a top event
follow in the same row, with query -1 where there is none."""


def new_events(count: int) -> np.ndarray:
    """Return ``count`` empty events."""
    events = np.zeros(count, EVENT)
    events["priority"] = np.nan
    for kind in NEGATIVES:
        events[f"{kind}_query"] = events[f"{kind}_key"] = -1
        events[f"{kind}_attention"] = events[f"{kind}_write_norm"] = np.nan
    return events


class Reservoir:
    """The ``size`` events of each group (head, split) that are largest in one field.

    Ties are broken by window, query and key.

    Parameters
    ----------
    field : str
        ``write_norm`` or ``priority``.
    size : int
        Events kept per group.
    splits : int [n]
        Split of every window of the run.
    n_heads : int
    documents : int [n], optional
        Document of every window; with it, at most ``per_document`` events of a group come from one.
    per_document : int
    """

    def __init__(
        self,
        field: str,
        size: int,
        splits: np.ndarray,
        n_heads: int,
        *,
        documents: np.ndarray | None = None,
        per_document: int = 0,
    ):
        self.field, self.size, self.splits, self.n_heads = field, size, splits, n_heads
        self.documents, self.per_document = documents, per_document
        self.n_splits = int(splits.max()) + 1 if len(splits) else 1
        # An event below its group's threshold can never be selected, so it need not be added.
        self.thresholds = np.zeros((self.n_splits, n_heads))
        self._limit = max(4096, 2 * size * self.n_splits * n_heads)
        self._parts: list[np.ndarray] = []
        self._held = 0

    def add(self, events: np.ndarray) -> None:
        """Add events; forget those that cannot be selected any more when many have gathered."""
        if len(events):
            self._parts.append(events)
            self._held += len(events)
            if self._held > self._limit:
                self.select()

    def select(self) -> np.ndarray:
        """Return the selected events, ordered by head, split, field (falling), window, query and key."""
        events = np.concatenate(self._parts) if self._parts else new_events(0)
        events = events[self._order(events)]
        if self.documents is not None:
            group = self._groups(events) * (self.documents.max(initial=0) + 1)
            events = events[
                rank_within(group + self.documents[events["window"]]) < self.per_document
            ]
        groups = self._groups(events)
        rank = rank_within(groups)
        self._raise_thresholds(events, groups, rank)
        events = events[rank < self.size]
        self._parts, self._held = [events], len(events)
        return events

    def _groups(self, events: np.ndarray) -> np.ndarray:
        return events["head"].astype(np.int64) * self.n_splits + self.splits[events["window"]]

    def _order(self, events: np.ndarray) -> np.ndarray:
        keys = (
            events["key"],
            events["query"],
            events["window"],
            -events[self.field],
            self._groups(events),
        )
        return np.lexsort(keys)

    def _raise_thresholds(self, events: np.ndarray, groups: np.ndarray, rank: np.ndarray) -> None:
        last = rank == self.size - 1
        head, split = np.divmod(groups[last], self.n_splits)
        self.thresholds[split, head] = events[self.field][last]


def rank_within(groups: np.ndarray) -> np.ndarray:
    """Return for each element how many earlier ones belong to the same group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = (
        np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        if len(groups)
        else np.zeros(0, int)
    )
    sizes = np.diff(np.r_[starts, len(groups)])
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank
