"""Intervals of shares, such as 1531 of 1536 prompts."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np


def share_interval(
    hits: np.ndarray, of: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's score intervals of shares (Wilson 1927), which have a width even at 0 and 1.

    Parameters
    ----------
    hits, of : array
        Counts, of shapes that broadcast.
    confidence : float

    Returns
    -------
    tuple of float64 array
        Lower and upper ends, NaN where ``of`` is 0.
    """
    hits, of = np.asarray(hits, dtype=np.float64), np.asarray(of, dtype=np.float64)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, scale = hits / of, 1 + z**2 / of
        middle = (share + z**2 / (2 * of)) / scale
        half = z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2)) / scale
        return np.where(of > 0, middle - half, np.nan), np.where(of > 0, middle + half, np.nan)
