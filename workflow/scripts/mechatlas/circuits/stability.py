"""How much a pruned circuit depends on the prompts it was found on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.pruning import PruneSettings, prune
from mechatlas.circuits.resume import Store
from mechatlas.io import progress, rng_for


def stability(
    make: Callable[[Tensor], Ablation],
    pairs: int,
    settings: PruneSettings,
    *,
    samples: int,
    seed: int,
    parts: Store | None = None,
    numbers: Iterable[int] | None = None,
) -> np.ndarray:
    """Return the circuits of random halves of the prompts, bool ``[samples, L, H + 1]``.

    Half-samples without replacement, as in stability selection (Meinshausen and Buehlmann 2010, section 2.1).

    Parameters
    ----------
    make : callable
        Gives the ablation of the prompts with the given indices; corrupted prompts and their means are those of the
        half-sample too.
    pairs : int
        Number of prompts.
    settings : PruneSettings
    samples : int
    seed : int
        Base seed.
    parts : Store, optional
        Keeps finished samples, so that a killed run continues.
    numbers : iterable of int, optional
        Of the samples to prune; all by default.
    """
    rng = rng_for(seed, "stability")
    halves = [np.sort(rng.permutation(pairs)[: max(1, pairs // 2)]) for _ in range(samples)]
    kept, chosen = [], range(samples) if numbers is None else list(numbers)
    for number in progress(chosen, desc="stability", unit="sample"):
        half = halves[number]

        def one(half: np.ndarray = half) -> dict[str, np.ndarray]:
            return {"keep": prune(make(torch.from_numpy(half)), settings).keep.numpy()}

        found = one() if parts is None else parts.get(f"half-{number}", one)
        kept.append(found["keep"])
    return np.stack(kept)


def first_of_each(groups: Sequence[str], count: int) -> np.ndarray:
    """Return the indices of the first ``count`` prompts of every group, ascending (``num_samps``)."""
    seen: dict[str, int] = {}
    chosen = []
    for index, group in enumerate(groups):
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= count:
            chosen.append(index)
    return np.array(chosen, dtype=np.int64)
