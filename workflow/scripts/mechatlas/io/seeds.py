"""One function from the seed in the config to the seed of every random choice."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(base_seed: int, *names: str | int) -> int:
    """Derive an independent seed for a named use.

    Parameters
    ----------
    base_seed : int
        ``seed`` of the config.
    *names : str or int
        What the seed is for, from coarse to fine, such as ``("capture", "demo-4l", 17)``.

    Returns
    -------
    int
        A number in [0, 2**63), the same on every platform and in every process.
    """
    text = "\x1f".join([repr(int(base_seed)), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng_for(base_seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator seeded by `seed_for`."""
    return np.random.default_rng(seed_for(base_seed, *names))
