"""Which latents of a dictionary are like a given one: by decoder direction, and by where they are active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mechatlas.dictionaries.code_files import Codes

SIMILAR, COACTIVE = "similar", "coactive"
#: Windows on which coactivation is counted; more are not needed to tell the closest, and memory grows with them.
COACTIVATION_WINDOWS = 2000


def similar_latents(
    decoder: np.ndarray, latents: Sequence[int], alive: np.ndarray, count: int
) -> Any:
    """Return the latents whose decoder directions have the largest cosine with each of some latents.

    Parameters
    ----------
    decoder : float [n_latents, d]
    latents : sequence of int
    alive : bool [n_latents]
        Others are passed over.
    count : int

    Returns
    -------
    data frame
        ``latent``, ``kind``, ``rank`` (from 1), ``neighbour``, ``value`` (the cosine).
    """
    unit = decoder.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return _nearest(unit[list(latents)] @ unit.T, latents, alive, count, SIMILAR)


class Coactivation:
    """Counts on which tokens latents are active together.

    Parameters
    ----------
    owned : sequence of Codes
        Activations of the latents whose neighbours are sought.
    windows : int [n]
        The windows on which they are counted.
    length : int
        Tokens per window.
    n_latents : int
    """

    def __init__(
        self, owned: Sequence[Codes], windows: np.ndarray, length: int, n_latents: int
    ) -> None:
        self.length, self.n_latents = length, n_latents
        self.row = np.full(int(windows.max(initial=-1)) + 1, -1)
        self.row[windows] = np.arange(len(windows))
        self.size = len(windows) * length
        self.latents = [codes.first for codes in owned]
        self.own = self._matrix(np.arange(len(owned)), owned)
        self.both = np.zeros((len(owned), n_latents))
        self.counts = np.zeros(n_latents)

    def add(self, block: Codes) -> None:
        """Count a block of latents."""
        theirs = self._matrix(np.arange(len(block)), [block])
        part = slice(block.first, block.first + len(block))
        self.both[:, part] = (self.own @ theirs.T).toarray()
        self.counts[part] = np.asarray(theirs.sum(1)).ravel()

    def nearest(self, alive: np.ndarray, count: int) -> Any:
        """Return the latents with the largest overlap, as `similar_latents` does.

        ``value`` is the Jaccard index: tokens on which both are active over those on which either is.
        """
        mine = np.asarray(self.own.sum(1)).reshape(-1, 1)
        either = mine + self.counts - self.both
        overlap = np.divide(self.both, either, out=np.zeros_like(self.both), where=either > 0)
        found = _nearest(overlap, self.latents, alive, count, COACTIVE)
        return found[found["value"] > 0].reset_index(drop=True)

    def _matrix(self, rows: np.ndarray, parts: Iterable[Codes]) -> Any:
        """Return which of some latents is active on which of the counted tokens, sparse [latents, tokens]."""
        from scipy.sparse import csr_array

        lines, places, start = [], [], 0
        for codes in parts:
            known = codes.window < len(self.row)
            row = np.where(known, self.row[np.where(known, codes.window, 0)], -1)
            kept = row >= 0
            lines.append(start + codes.latents[kept])
            places.append(row[kept] * self.length + codes.position[kept])
            start += len(codes)
        line, place = np.concatenate(lines), np.concatenate(places)
        return csr_array((np.ones(len(line)), (line, place)), shape=(len(rows), self.size))


def _nearest(
    values: np.ndarray, latents: Sequence[int], alive: np.ndarray, count: int, kind: str
) -> Any:
    """Return for every row the columns with the largest values, itself and dead ones left out, ties by column."""
    import pandas as pd

    frames = []
    for latent, row in zip(latents, values, strict=True):
        row = np.where(alive, row, -np.inf)
        row[latent] = -np.inf
        best = np.argsort(-row, kind="stable")[:count]
        best = best[np.isfinite(row[best])]
        columns = {"latent": latent, "kind": kind, "rank": np.arange(1, len(best) + 1)}
        frames.append(pd.DataFrame({**columns, "neighbour": best, "value": row[best]}))
    columns = ["latent", "kind", "rank", "neighbour", "value"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
