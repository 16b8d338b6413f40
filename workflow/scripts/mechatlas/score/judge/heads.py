"""What test items need to know about an attention head: its events, and its patterns on the pattern sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import pandas as pd

from mechatlas.explain.excerpts import HEAD, Excerpts, Piece
from mechatlas.io import rng_for
from mechatlas.score.judge.places import LEAST_ROOM, PLACE, Place, Rotation, Spot, Stretch

NEGATIVES = ("same_query", "same_key", "same_distance")
#: Strong events, from which test items are drawn.
EVENT_ROLES = ("top", "quantile")
#: Below this share of the active pair's attention a pair counts as a matched negative (as in capture).
NEGATIVE_SHARE = 0.1
#: Candidates are thinned out to this many, at random.
CANDIDATES = 4000


class HeadActivity:
    """A head on the documents of one split; see `mechatlas.score.judge.places.Activity`.

    Parameters
    ----------
    windows : data frame
        Columns ``window``, ``doc``, ``tokens`` of all windows of the split.
    sample : int [W]
        Window numbers of the pattern sample.
    patterns : float32 [W, H, T, T]
        Patterns of all heads that share a layer, of this sample.
    head : int
    events : data frame or None
        Events of the head on this split (raw_events.parquet). None takes active pairs from the patterns: a planted
        unit has no events.
    excerpts : Excerpts
    threshold : float
        Attention from which a pair off BOS is active.
    seed : int
    name : str
        Of the unit; choices depend on seed and name.
    """

    kind = HEAD
    negatives = NEGATIVES
    position_matched = "same_distance"

    def __init__(
        self,
        windows: pd.DataFrame,
        sample: np.ndarray,
        patterns: np.ndarray,
        head: int,
        events: pd.DataFrame | None,
        excerpts: Excerpts,
        threshold: float,
        seed: int,
        name: str,
    ) -> None:
        self.docs: Mapping[int, str] = dict(
            zip(windows["window"].tolist(), windows["doc"].astype(str), strict=True)
        )
        self._tokens = dict(zip(windows["window"].tolist(), windows["tokens"], strict=True))
        self.sample = np.asarray(sample)
        self.row_of = {int(window): row for row, window in enumerate(self.sample)}
        self.patterns = patterns
        self.head = head
        self.events = events
        self.excerpts = excerpts
        self.threshold = threshold
        self.seed = seed
        self.name = name

    @property
    def pattern(self) -> np.ndarray:
        """The head's own patterns: float32 [W, T, T]."""
        return self.patterns[:, self.head]

    # --- active places ----------------------------------------------------------------------------

    def active(self) -> pd.DataFrame:
        """Return active pairs off BOS: events of capture, or pairs of the pattern sample where there are none."""
        if self.events is None:
            found = self._pairs(self.pattern >= self.threshold, "active")
            return found.assign(weight=found["strength"])
        events = self.events[self.events["role"].isin(EVENT_ROLES)]
        events = events[(events["attention"] >= self.threshold) & (events["key"] >= 1)]
        events = events.drop_duplicates(["window", "query", "key"])
        # The events' own weight is how many pairs they stand for, which is not wanted here.
        events = events.drop(columns="weight")
        places = events.rename(columns={"attention": "strength", "write_norm": "weight"})
        return places[list(PLACE)].reset_index(drop=True)

    def _pairs(self, mask: np.ndarray, use: str, most: int = CANDIDATES) -> pd.DataFrame:
        """Return marked pairs off BOS of the sample, thinned out, as places without weight."""
        row, query, key = np.nonzero(mask)
        kept = np.flatnonzero(key >= 1)
        if len(kept) > most:
            kept = np.sort(rng_for(self.seed, use, self.name).choice(kept, most, replace=False))
        row, query, key = row[kept], query[kept], key[kept]
        windows = self.sample[row]
        docs = [self.docs[int(window)] for window in windows]
        strength = self.pattern[row, query, key]
        return pd.DataFrame(
            {"window": windows, "doc": docs, "query": query, "key": key, "strength": strength}
        )

    # --- inactive places --------------------------------------------------------------------------

    def negative(self, anchor: Place, kind: str, used: set[Spot]) -> Place | None:
        """Return the negative that capture kept, else one of the same window, else (same distance) of another."""
        found = self._captured.get((anchor.window, anchor.query, anchor.key, kind))
        if found is not None and self._fits(anchor, found, used):
            return found
        names = ("negative", self.name, kind, anchor.window, anchor.query, anchor.key)
        rng = rng_for(self.seed, *names)
        found = None
        if anchor.window in self.row_of:
            row = self.row_of[anchor.window]
            found = self._draw(anchor, kind, slice(row, row + 1), used, rng)
        if found is None and kind == "same_distance":
            found = self._draw(anchor, kind, slice(None), used, rng)
        return found

    @cached_property
    def _captured(self) -> dict[tuple[int, int, int, str], Place]:
        if self.events is None:
            return {}
        found: dict[tuple[int, int, int, str], Place] = {}
        for kind in NEGATIVES:
            rows = self.events[self.events["role"] == f"negative_{kind}"]
            # A pair whose value is small has a small write norm and may still be attended to.
            rows = rows[rows["attention"] < self.threshold]
            for row in rows.itertuples():
                place = Place(row.window, str(row.doc), row.query, row.key, float(row.attention))
                found[(row.window, row.anchor_query, row.anchor_key, kind)] = place
        return found

    def _fits(self, anchor: Place, other: Place, used: set[Spot]) -> bool:
        return other.key - 1 >= min(LEAST_ROOM, anchor.key - 1) and other.spot not in used

    def _draw(
        self, anchor: Place, kind: str, rows: slice, used: set[Spot], rng: np.random.Generator
    ) -> Place | None:
        """Return a random weak pair of some windows that matches an active one."""
        length = self.pattern.shape[-1]
        at = np.arange(1, length)
        if kind == "same_query":
            query, key = np.full(len(at), anchor.query), at
        elif kind == "same_key":
            query, key = at, np.full(len(at), anchor.key)
        else:
            query, key = at, at - (anchor.query - anchor.key)
        inside = (key > min(LEAST_ROOM, anchor.key - 1)) & (key <= query)
        query, key = query[inside], key[inside]
        strength = self.pattern[rows][:, query, key]
        weak = np.flatnonzero(strength < NEGATIVE_SHARE * anchor.strength)
        first = rows.start or 0
        for i in _shuffled(weak, rng):
            row, column = divmod(int(i), len(query))
            window = int(self.sample[first + row])
            place = Place(
                window, self.docs[window], int(query[column]), int(key[column]),
                float(strength[row, column]),
            )  # fmt: skip
            if place.spot not in used:
                return place
        return None

    @cached_property
    def _quiet_rows(self) -> tuple[np.ndarray, np.ndarray, Rotation]:
        quiet = self.pattern[:, :, 1:].max(-1) < self.threshold
        quiet[:, 0] = False
        row, query = np.nonzero(quiet)
        docs = np.array([self.docs[int(window)] for window in self.sample])
        return row, query, Rotation(docs[row], rng_for(self.seed, "quiet", self.name))

    def quiet(self, anchor: Place) -> Place | None:
        """Return a row without active pair, with room to be shown like the anchor; ``key`` is where its text begins."""
        row, query, rotation = self._quiet_rows
        distance = anchor.query - anchor.key
        wanted = min(anchor.key - 1, self.excerpts.before)
        for room in (wanted, min(wanted, LEAST_ROOM)):
            at = rotation.take(query - distance - 1 >= room)
            if at is not None:
                window = int(self.sample[row[at]])
                q = int(query[at])
                strength = float(self.pattern[row[at], q, 1:].max())
                return Place(window, self.docs[window], q, q - distance, strength)
        return None

    def quiet_shortage(self) -> str:
        """Say at how many rows the head is active."""
        rows = self.pattern.shape[0] * (self.pattern.shape[1] - 1)
        return f"the head is active at {rows - len(self._quiet_rows[0])} of {rows} test queries"

    def foreign(self) -> pd.DataFrame:
        """Return pairs at which another head of the layer is active and this one is not (attention below a tenth)."""
        own = self.pattern < NEGATIVE_SHARE * self.threshold
        others = [head for head in range(self.patterns.shape[1]) if head != self.head]
        share = max(1, CANDIDATES // max(1, len(others)))
        found = [
            self._pairs(own & (self.patterns[:, head] >= self.threshold), f"foreign {head}", share)
            for head in others
        ]
        if not found:
            return pd.DataFrame(columns=list(PLACE))
        places = pd.concat(found, ignore_index=True).drop_duplicates(["window", "query", "key"])
        return places.assign(weight=1.0)

    # --- stretches of text ------------------------------------------------------------------------

    def random_inactive(self, count: int) -> tuple[list[Place], int]:
        """Return nothing: the scorer that wants random places is for latents."""
        return [], 0

    def stretches(self, count: int, longest: int) -> list[Stretch]:
        """Return rows of the sample, each with the keys of its last ``longest`` tokens, the query included.

        Half of them have their strongest key off BOS in this stretch and active, the others are drawn from all rows.
        """
        length = self.pattern.shape[1]
        strongest = 1 + self.pattern[:, :, 1:].argmax(-1)
        top = self.pattern[:, :, 1:].max(-1)
        near = (top >= self.threshold) & (strongest > np.arange(length) - longest)
        every = np.zeros_like(near)
        every[:, 1:] = True
        near &= every
        docs = np.array([self.docs[int(window)] for window in self.sample])
        row, query = np.nonzero(every)
        rotation = Rotation(docs[row], rng_for(self.seed, "stretches", self.name))
        found = []
        for number in range(count):
            wanted = near[row, query] if number % 2 == 0 else np.ones(len(row), dtype=bool)
            at = rotation.take(wanted)
            if at is None:
                continue
            r, q = int(row[at]), int(query[at])
            start = max(1, q - longest + 1)
            window = int(self.sample[r])
            values = self.pattern[r, q, start : q + 1].astype(np.float64)
            active = bool(near[r, q])
            found.append(Stretch(window, self.docs[window], start, q + 1, values, active))
        return found

    # --- excerpts ---------------------------------------------------------------------------------

    def room(self, place: Place) -> int:
        """Return how many tokens stand before the key."""
        return place.key - 1

    def marked(self, place: Place, before: int) -> tuple[Piece, ...]:
        """Return ``(text before the key, key, text between, query)``."""
        # Excerpts never show position 0, so a window cut there is a window with less text.
        cut = max(0, place.key - 1 - before)
        tokens = np.asarray(self._tokens[place.window])[cut:]
        return self.excerpts.pair(tokens, place.query - cut, place.key - cut)

    def hidden(self, place: Place, before: int) -> tuple[Piece, ...]:
        """Return ``(text before the query, query)``: the text of `marked` without the key's mark."""
        first, key, between, query = self.marked(place, before)
        if between is None:
            return (first, query)
        if isinstance(between, tuple):
            return ((f"{first}{key}{between[0]}", between[1], between[2]), query)
        return (f"{first}{key}{between}", query)

    def token(self, window: int, at: int) -> str:
        """Return the text of one token."""
        return self.excerpts.token(np.asarray(self._tokens[window]), at)


def _shuffled(values: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Yield values in random order; costs little where only the first ones are wanted."""
    values = values.copy()
    for last in range(len(values) - 1, -1, -1):
        at = int(rng.integers(last + 1))
        yield int(values[at])
        values[at] = values[last]
