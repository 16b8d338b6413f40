"""Random circuits of the size of a found one: what faithfulness means little without."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation
from mechatlas.io import UserError, rng_for

PROFILES = ("layer", "kind", "size")
ATTEMPTS = 20  # draws per wanted circuit, before fewer have to do


def random_circuits(keep: Tensor, count: int, *, seed: int, profile: str = "layer") -> Tensor:
    """Draw different circuits of the size of ``keep``, itself excluded, bool ``[<= count, L, H + 1]``.

    Parameters
    ----------
    keep : bool Tensor [L, H + 1]
    count : int
        Fewer are returned where fewer exist.
    seed : int
    profile : {"layer", "kind", "size"}
        What they share with ``keep``: the number of heads in every layer and the MLPs; the numbers of heads and of
        MLPs; the number of nodes.
    """
    if profile not in PROFILES:
        raise UserError(f"profile {profile!r} does not exist; choose one of {', '.join(PROFILES)}")
    rng, wanted = rng_for(seed, "random circuits", profile), keep.numpy()
    found = {wanted.tobytes(): wanted}
    for _ in range(ATTEMPTS * count):
        if len(found) > count:
            break
        drawn = wanted.copy()
        if profile == "layer":
            drawn[:, :-1] = rng.permuted(drawn[:, :-1], axis=1)
        elif profile == "kind":
            drawn[:, :-1] = rng.permutation(drawn[:, :-1].ravel()).reshape(len(drawn), -1)
            drawn[:, -1] = rng.permutation(drawn[:, -1])
        else:
            drawn = rng.permutation(drawn.ravel()).reshape(drawn.shape)
        found.setdefault(drawn.tobytes(), drawn)
    others = list(found.values())[1:]
    return torch.from_numpy(np.stack(others)) if others else keep[None][:0]


def against_random(
    ablation: Ablation, keep: Tensor, count: int, *, seed: int, profile: str = "layer"
) -> dict[str, float | int | str | list[float]]:
    """Compare a circuit with random ones of its size (see `random_circuits`).

    Returns
    -------
    dict
        ``percent`` of the circuit; ``random``: percent of each random circuit; ``mean`` and ``max`` of those (None if
        there are none); ``count``; and ``p``, the share of circuits (the own one included) that do at least as well.
    """
    drawn = random_circuits(keep, count, seed=seed, profile=profile)
    values = ablation.values(torch.cat([ablation.full[None], keep[None], drawn]))
    full, *means = values.double().mean(1).tolist()
    own, *random = (100 * mean / full for mean in means)
    better = sum(value >= own for value in random)
    return {
        "profile": profile,
        "percent": own,
        "mean": float(np.mean(random)) if random else None,
        "max": max(random, default=None),
        "p": (1 + better) / (1 + len(random)),
        "count": len(random),
        "random": random,
    }
