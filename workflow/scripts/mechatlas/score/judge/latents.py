"""What test items need to know about a dictionary latent: its activations, one number per token."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd

from mechatlas.explain.excerpts import LATENT, Excerpts, Piece
from mechatlas.io import rng_for
from mechatlas.score.judge.places import LEAST_ROOM, PLACE, Place, Rotation, Spot, Stretch

NEGATIVES = ("same_token", "same_window")


class LatentActivity:
    """A latent on the documents of one split; see `mechatlas.score.judge.places.Activity`.

    Parameters
    ----------
    windows : data frame
        Columns ``window``, ``doc``, ``tokens``: the windows on which activations are known.
    activations : float [W, N, T]
        Activations of this latent and others on them, in the order of ``windows``; position 0 (BOS) never counts.
    latent : int
        Place of the latent on the second axis.
    excerpts : Excerpts
    threshold : float
        Share of a latent's largest activation from which it counts as active; it is inactive at 0 and below.
    seed : int
    name : str
        Of the unit; choices depend on seed and name.
    """

    kind = LATENT
    negatives = NEGATIVES
    position_matched = "same_window"

    def __init__(
        self,
        windows: pd.DataFrame,
        activations: np.ndarray,
        latent: int,
        excerpts: Excerpts,
        threshold: float,
        seed: int,
        name: str,
    ) -> None:
        self.windows = windows["window"].to_numpy()
        self.docs = windows["doc"].to_numpy().astype(str)
        self.tokens = np.stack(windows["tokens"].to_list())
        self.row_of = {int(window): row for row, window in enumerate(self.windows)}
        known = np.maximum(activations.astype(np.float64), 0)
        known[:, :, 0] = 0
        known /= np.maximum(known.max((0, 2), keepdims=True), 1e-12)
        self.values = known[:, latent]
        self.others = (np.delete(known, latent, axis=1) >= threshold).any(1)
        self.excerpts = excerpts
        self.threshold = threshold
        self.seed = seed
        self.name = name
        inactive = self.values <= 0
        inactive[:, 0] = False
        self._inactive = inactive

    def active(self) -> pd.DataFrame:
        """Return the tokens at which the latent is active."""
        return self._places(self.values >= self.threshold)

    def foreign(self) -> pd.DataFrame:
        """Return tokens at which another latent is active and this one is not."""
        return self._places(self.others & self._inactive)

    def _places(self, mask: np.ndarray) -> pd.DataFrame:
        row, at = np.nonzero(mask[:, 1:])
        at = at + 1
        strength = self.values[row, at]
        columns = (self.windows[row], self.docs[row], at, np.full(len(at), -1), strength, strength)
        return pd.DataFrame(dict(zip(PLACE, columns, strict=True)))

    def negative(self, anchor: Place, kind: str, used: set[Spot]) -> Place | None:
        """Return an inactive token of the same window, or an inactive copy of the same token in any window."""
        row = self.row_of[anchor.window]
        if kind == "same_token":
            mask = self._inactive & (self.tokens == self.tokens[row, anchor.query])
        else:
            mask = np.zeros_like(self._inactive)
            mask[row] = self._inactive[row]
        rows, places = np.nonzero(mask)
        rng = rng_for(self.seed, "negative", self.name, kind, anchor.window, anchor.query)
        for i in rng.permutation(len(rows)):
            place = self._place(int(rows[i]), int(places[i]))
            enough = self.room(place) >= min(LEAST_ROOM, self.room(anchor))
            if enough and place.spot not in used:
                return place
        return None

    def _place(self, row: int, at: int) -> Place:
        strength = float(self.values[row, at])
        return Place(int(self.windows[row]), str(self.docs[row]), at, -1, strength)

    def quiet(self, anchor: Place) -> Place | None:
        """Return a token before which, and at which, nothing that is shown is active."""
        row, at, rotation = self._quiet
        wanted = min(self.room(anchor), self.excerpts.before)
        for room in (wanted, min(wanted, LEAST_ROOM)):
            found = rotation.take(at - 1 >= room)
            if found is not None:
                return self._place(int(row[found]), int(at[found]))
        return None

    @cached_property
    def _quiet(self) -> tuple[np.ndarray, np.ndarray, Rotation]:
        loud = np.cumsum(self.values > 0, axis=1)
        earlier = np.pad(loud, ((0, 0), (self.excerpts.before + 1, 0)))[:, : loud.shape[1]]
        row, at = np.nonzero((loud - earlier == 0) & self._inactive)
        return row, at, Rotation(self.docs[row], rng_for(self.seed, "quiet", self.name))

    def quiet_shortage(self) -> str:
        """Say at how many tokens the latent is active."""
        active = int((self.values > 0).sum())
        return f"the latent is active at {active} of {self.values[:, 1:].size} test tokens"

    def random_inactive(self, count: int) -> tuple[list[Place], int]:
        """Return uniformly random inactive tokens, and how many inactive tokens there are."""
        row, at = np.nonzero(self._inactive)
        rng = rng_for(self.seed, "random inactive", self.name)
        chosen = rng.choice(len(row), min(count, len(row)), replace=False)
        return [self._place(int(row[i]), int(at[i])) for i in chosen], len(row)

    def stretches(self, count: int, longest: int) -> list[Stretch]:
        """Return stretches of ``longest`` tokens, every other one with activity."""
        ends = np.zeros(self.values.shape, dtype=bool)
        ends[:, min(longest, self.values.shape[1] - 1) :] = True
        row, last = np.nonzero(ends)
        loud = np.cumsum(self.values >= self.threshold, axis=1)
        inside = loud[row, last] - loud[row, np.maximum(0, last - longest)] > 0
        rotation = Rotation(self.docs[row], rng_for(self.seed, "stretches", self.name))
        found = []
        for number in range(count):
            at = rotation.take(inside if number % 2 == 0 else np.ones(len(row), dtype=bool))
            if at is None:
                continue
            r, stop = int(row[at]), int(last[at]) + 1
            start = max(1, stop - longest)
            values, active = self.values[r, start:stop], bool(inside[at])
            window, doc = int(self.windows[r]), str(self.docs[r])
            drawn = number % 2 == 1
            found.append(Stretch(window, doc, start, stop, values, active, drawn))
        return found

    def room(self, place: Place) -> int:
        """Return how many tokens stand before the token."""
        return place.query - 1

    def marked(self, place: Place, before: int) -> tuple[Piece, ...]:
        """Return ``(text before the token, token)``."""
        cut = max(0, place.query - 1 - before)
        tokens = self.tokens[self.row_of[place.window]][cut:]
        return self.excerpts.place(tokens, place.query - cut)

    def hidden(self, place: Place, before: int) -> tuple[Piece, ...]:
        """Return the same text in one piece."""
        return ("".join(str(piece) for piece in self.marked(place, before)),)

    def token(self, window: int, at: int) -> str:
        """Return the text of one token."""
        return self.excerpts.token(self.tokens[self.row_of[window]], at)
