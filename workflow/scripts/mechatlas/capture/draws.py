"""Random choices that depend on the seed and on what is chosen, never on batches or chunks."""

from __future__ import annotations

import numpy as np

from mechatlas.io import rng_for, seed_for


def hash_of(seed: int, *parts: np.ndarray | int) -> np.ndarray:
    """Hash integers (broadcast together) to uint64 by the finaliser of splitmix64 (Steele et al. 2014)."""
    state = np.asarray(seed, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = state ^ (np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform_of(seed: int, *parts: np.ndarray | int) -> np.ndarray:
    """Return hashed numbers uniform in the open interval (0, 1), float64."""
    return ((hash_of(seed, *parts) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def random_pairs(seed: int, splits: np.ndarray, length: int, count: int) -> np.ndarray:
    """Draw ``count`` causal (query, key) pairs in each split, uniformly and without repetition.

    Each window gets its share of the draws, the windows in excess of an even share being chosen at random.

    Parameters
    ----------
    splits : int [n]
        The split of every window of the run (not of one chunk).
    length : int
        Tokens per window.

    Returns
    -------
    int64 [m, 3]
        Rows (window, query, key), sorted by window. Where a split holds fewer pairs than ``count``: all.
    """
    pairs = length * (length + 1) // 2
    rows = []
    for split in np.unique(splits):
        members = rng_for(seed, "random windows", int(split)).permutation(
            np.flatnonzero(splits == split)
        )
        share, excess = divmod(min(count, pairs * len(members)), len(members))
        for place, window in enumerate(members[: count if share == 0 else None]):
            wanted = share + (place < excess)
            chosen = rng_for(seed, "random", int(window)).choice(pairs, wanted, replace=False)
            query = ((np.sqrt(8.0 * chosen + 1) - 1) / 2).astype(np.int64)
            rows.append(
                np.stack([np.full(wanted, window), query, chosen - query * (query + 1) // 2], 1)
            )
    found = np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)
    return found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]


def sampled_queries(seed: int, windows: np.ndarray, length: int, count: int) -> np.ndarray:
    """Choose ``count`` different query positions from 1 to ``length - 1`` in each window, int64 [n, count]."""
    numbers = hash_of(seed_for(seed, "query rows"), windows[:, None], np.arange(1, length)[None])
    return 1 + np.sort(np.argsort(numbers, axis=1, kind="stable")[:, :count], axis=1)
