"""Places where a unit is or is not active, and the order in which they become test items; the same for all units.

A place is a row with the columns ``PLACE``: a (query, key) pair of a head, or a token of a latent (``key`` -1 then).
What differs between kinds of units is behind `Activity`; nothing else in this package knows what a unit is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from mechatlas.explain.excerpts import Piece, UnitKind
from mechatlas.io import rng_for

#: ``strength`` is attention or activation; ``weight`` is that by which events are spread over strata.
PLACE = ("window", "doc", "query", "key", "strength", "weight")
STRATA = 10
#: Fewest tokens of text before an inactive place, where the active one has them.
LEAST_ROOM = 4


Spot = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """One place; see the module's page."""

    window: int
    doc: str
    query: int
    key: int
    strength: float

    @property
    def spot(self) -> Spot:
        """Where it is: window, query, key."""
        return (self.window, self.query, self.key)


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens ``start .. stop - 1`` of a window and how active the unit is at each: float [stop - start].

    ``random`` says that it was drawn from all stretches of a latent, whether there is activity in it or not.
    """

    window: int
    doc: str
    start: int
    stop: int
    strengths: np.ndarray
    active: bool
    random: bool = False


class Activity(Protocol):
    """What test items need to know about a unit, on documents of one split.

    Attributes
    ----------
    kind : UnitKind
    negatives : tuple of str
        Kinds of matched negatives.
    position_matched : str
        The kind among them that shares the active place's positions, so that position alone tells nothing.
    """

    kind: UnitKind
    negatives: tuple[str, ...]
    position_matched: str

    def active(self) -> pd.DataFrame:
        """Return places at which the unit is active: columns `PLACE`."""
        ...

    def negative(self, anchor: Place, kind: str, used: set[Spot]) -> Place | None:
        """Return an inactive place that is not among the used ones and matches an active one, or None."""
        ...

    def quiet(self, anchor: Place) -> Place | None:
        """Return a place where nothing of what can be shown is active, to be shown with as much text, or None."""
        ...

    def quiet_shortage(self) -> str:
        """Say why quiet places are few."""
        ...

    def foreign(self) -> pd.DataFrame:
        """Return places at which another unit is active and this one is not: columns `PLACE`."""
        ...

    def random_inactive(self, count: int) -> tuple[list[Place], int]:
        """Return uniformly random inactive places, and how many there are in all (latents only)."""
        ...

    def stretches(self, count: int, longest: int) -> list[Stretch]:
        """Return text in which to predict activity token by token, half of it with activity if possible."""
        ...

    def room(self, place: Place) -> int:
        """Return how many tokens of text stand before the first token that is shown as part of the place."""
        ...

    def marked(self, place: Place, before: int) -> tuple[Piece, ...]:
        """Return the excerpt of a place with its tokens marked and at most ``before`` tokens of text before them."""
        ...

    def hidden(self, place: Place, before: int) -> tuple[Piece, ...]:
        """Return the same text without the marks that would give the place away."""
        ...

    def token(self, window: int, at: int) -> str:
        """Return the text of one token."""
        ...


def spread(places: pd.DataFrame, max_per_document: int, seed: int, *names: str) -> Iterator[Place]:
    """Yield places from all strengths in turn, in an order that depends on the seed.

    Places are cut into `STRATA` parts of equal size by weight and taken from these in turn; first at most one place
    of a document, then at most two, and so on up to ``max_per_document``.
    """
    if places.empty:
        return
    number = rng_for(seed, "spread", *names).permutation(len(places))
    rank = places["weight"].rank(method="first", ascending=False).to_numpy().astype(np.int64) - 1
    strata = rank * STRATA // len(places)
    queues = [sorted(np.flatnonzero(strata == s), key=lambda i: number[i]) for s in range(STRATA)]
    docs = places["doc"].astype(str).to_numpy()
    rows = list(places[["window", "doc", "query", "key", "strength"]].itertuples(index=False))
    taken: dict[str, int] = {}
    for most in range(1, max_per_document + 1):
        for at in _in_turn(queues):
            if taken.get(docs[at], 0) >= most:
                continue
            taken[docs[at]] = taken.get(docs[at], 0) + 1
            row = rows[at]
            yield Place(int(row[0]), str(row[1]), int(row[2]), int(row[3]), float(row[4]))
            strata[at] = -1
        queues = [[i for i in queue if strata[i] >= 0] for queue in queues]


def _in_turn(queues: Sequence[Sequence[int]]) -> Iterator[int]:
    for depth in range(max(map(len, queues), default=0)):
        yield from (queue[depth] for queue in queues if depth < len(queue))


class Rotation:
    """Hands out candidates so that all documents are used alike and none is used twice.

    Parameters
    ----------
    docs : array of str [n]
        Document of each candidate.
    rng : numpy.random.Generator
        Decides among candidates of equally used documents.
    """

    def __init__(self, docs: np.ndarray, rng: np.random.Generator) -> None:
        self.codes = np.unique(docs.astype(str), return_inverse=True)[1] if len(docs) else docs
        self.used = np.zeros(int(self.codes.max()) + 1 if len(docs) else 0, dtype=np.int64)
        self.order = rng.permutation(len(docs))
        self.free = np.ones(len(docs), dtype=bool)

    def take(self, eligible: np.ndarray) -> int | None:
        """Return the number of a free candidate among those that are eligible (bool [n]), or None."""
        found = np.flatnonzero(eligible & self.free)
        if not len(found):
            return None
        best = found[np.lexsort((self.order[found], self.used[self.codes[found]]))[0]]
        self.free[best] = False
        self.used[self.codes[best]] += 1
        return int(best)
