"""Permutations for controls in which nothing may stay where it was."""

from __future__ import annotations

import numpy as np


def derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random permutation that moves every place, int64 [count]: one cycle through all (Sattolo 1986).

    A plain permutation leaves one place where it was on average, whose control would then be no control. A single place
    has nowhere to go.
    """
    order = rng.permutation(count)
    moved = np.empty(count, dtype=np.int64)
    moved[order] = np.roll(order, 1)
    return moved
