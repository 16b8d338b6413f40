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


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Return the agreement of two yes-or-no ratings beyond chance (Cohen 1960), over all entries of two arrays.

    Returns
    -------
    float
        1 where they are equal, 0 at what their shares of yes alone give; NaN if both are all yes or all no.
    """
    said, shown = first.mean(), second.mean()
    chance = said * shown + (1 - said) * (1 - shown)
    return float(((first == second).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


def mean_difference(named: np.ndarray, values: np.ndarray) -> float:
    """Return the mean of the values where ``named`` minus that elsewhere; NaN if either is nowhere."""
    if not named.any() or named.all():
        return float("nan")
    return float(values[named].mean() - values[~named].mean())


def with_control(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    words: np.ndarray,
    facts: np.ndarray,
    layers: np.ndarray,
    draws: Draws,
    rng: np.random.Generator,
) -> dict[str, float | int | None]:
    """Compute a statistic of words and facts about heads, its interval, and its control.

    Parameters
    ----------
    statistic : callable
        Of (words, facts).
    words, facts : array [heads, ...]
        Rows are heads.
    layers : int array [heads]
    draws : Draws
    rng : numpy Generator

    Returns
    -------
    dict
        ``value``; ``low``, ``high`` (bootstrap over heads); ``permuted`` (mean over permutations within layers) and
        ``p`` (share of these, the true assignment included, that reach the value); ``permuted_anywhere`` and
        ``p_anywhere`` likewise over all heads; ``heads``. Missing numbers are None.
    """
    value = statistic(words, facts)
    count = len(words)
    resampled = [value]
    for _ in range(draws.count):
        chosen = rng.integers(0, count, count)
        resampled.append(statistic(words[chosen], facts[chosen]))
    low, high = interval(np.array(resampled), draws.confidence)
    found: dict[str, float | None] = {"value": value, "low": low, "high": high}
    for suffix, groups in (("", layers), ("_anywhere", np.zeros(count))):
        drawn = np.array(
            [statistic(words[shuffled(groups, rng)], facts) for _ in range(draws.count)]
        )
        found |= _control(value, drawn, suffix)
    return {k: _number(v) for k, v in found.items()} | {"heads": count}


def shuffled(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation of places that keeps each within its group."""
    order = np.arange(len(groups))
    for group in np.unique(groups):
        places = np.flatnonzero(groups == group)
        order[places] = rng.permutation(places)
    return order


def _control(value: float, drawn: np.ndarray, suffix: str) -> Mapping[str, float]:
    finite = drawn[np.isfinite(drawn)]
    if not len(finite) or not np.isfinite(value):
        return {f"permuted{suffix}": float("nan"), f"p{suffix}": float("nan")}
    reached = np.count_nonzero(finite >= value - 1e-12)
    return {f"permuted{suffix}": finite.mean(), f"p{suffix}": (reached + 1) / (len(finite) + 1)}


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
