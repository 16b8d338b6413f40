"""Do words and measurements agree? Cohen's kappa and mean differences, with permutations and intervals.

A permutation moves whole explanations between heads of the same layer. Heads of a layer often do the same, and then an
explanation of one fits the other: a value that is high against permutations over all heads and not against those within
layers says that words tell layers apart, not heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mechatlas.stats.bootstrap import interval


@dataclass(frozen=True)
class Draws:
    """How controls and intervals are drawn.

    Attributes
    ----------
    count : int
        Permutations, and bootstrap replicates.
    confidence : float
        Of intervals.
    """

    count: int
    confidence: float


class Resamples:
    """Which heads stand in for which: bootstrap samples of heads, and permutations within layers and over all.

    Parameters
    ----------
    layers : int array [heads]
    draws : Draws
    rng : numpy Generator

    Attributes
    ----------
    bootstrap, within, anywhere : int array [draws.count, heads]
    """

    def __init__(self, layers: np.ndarray, draws: Draws, rng: np.random.Generator) -> None:
        shape = (draws.count, len(layers))
        self.confidence = draws.confidence
        self.bootstrap = rng.integers(0, max(len(layers), 1), shape)
        self.within = shuffles(layers, draws.count, rng)
        self.anywhere = shuffles(np.zeros(len(layers), int), draws.count, rng)


def shuffles(groups: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return permutations of places that keep each within its group, int [count, places]."""
    order = np.empty((count, len(groups)), int)
    _, codes = np.unique(groups, return_inverse=True)
    # Sorted by group and at random within it, put where the groups are.
    order[:, np.argsort(codes, kind="stable")] = np.argsort(codes + rng.random(order.shape), axis=1)
    return order


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the agreement of two yes-or-no ratings beyond chance (Cohen 1960), for each replicate.

    Parameters
    ----------
    first, second : bool array [replicates, ...]

    Returns
    -------
    float array [replicates]
        1 where they are equal, 0 at what their shares of yes alone give; NaN if both are all yes or all no.
    """
    first, second = (x.reshape(len(x), -1) for x in np.broadcast_arrays(first, second))
    said, shown = first.mean(1), second.mean(1)
    chance = said * shown + (1 - said) * (1 - shown)
    with np.errstate(invalid="ignore"):
        return np.where(chance < 1, ((first == second).mean(1) - chance) / (1 - chance), np.nan)


def mean_difference(named: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of the values where ``named`` minus that elsewhere, for each replicate.

    Parameters
    ----------
    named : bool array [replicates, heads]
    values : float array [replicates, heads]

    Returns
    -------
    float array [replicates]
        NaN if all or none are named.
    """
    named, values = np.broadcast_arrays(named, values)
    with np.errstate(invalid="ignore"):
        return (named * values).sum(1) / named.sum(1) - (~named * values).sum(1) / (~named).sum(1)


def with_control(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    words: np.ndarray,
    facts: np.ndarray,
    resamples: Resamples,
) -> dict[str, float | int | None]:
    """Compute a statistic of words and facts about heads, its interval, and its control.

    Parameters
    ----------
    statistic : callable
        Of words and facts [replicates, heads, ...], to [replicates].
    words, facts : array [heads, ...]
    resamples : Resamples

    Returns
    -------
    dict
        ``value``; ``low``, ``high`` (bootstrap over heads); ``permuted`` (mean over permutations within layers) and
        ``p`` (share of these, the true assignment included, that reach the value); ``permuted_anywhere`` and
        ``p_anywhere`` likewise over all heads; ``heads``. Missing numbers are None.
    """
    value = statistic(words[None], facts[None])
    drawn = statistic(words[resamples.bootstrap], facts[resamples.bootstrap])
    low, high = interval(np.concatenate([value, drawn]), resamples.confidence)
    found: dict[str, float] = {"value": value[0], "low": low, "high": high}
    for suffix, orders in (("", resamples.within), ("_anywhere", resamples.anywhere)):
        found |= _control(value[0], statistic(words[orders], facts[None]), suffix)
    return {k: _number(v) for k, v in found.items()} | {"heads": len(words)}


def _control(value: float, drawn: np.ndarray, suffix: str) -> Mapping[str, float]:
    finite = drawn[np.isfinite(drawn)]
    if not len(finite) or not np.isfinite(value):
        return {f"permuted{suffix}": float("nan"), f"p{suffix}": float("nan")}
    reached = np.count_nonzero(finite >= value - 1e-12)
    return {f"permuted{suffix}": finite.mean(), f"p{suffix}": (reached + 1) / (len(finite) + 1)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
