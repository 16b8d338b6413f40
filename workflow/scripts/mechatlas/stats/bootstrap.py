"""Bootstrap over documents for statistics that are functions of sums.

Windows of one document are not independent, so documents are resampled, never windows or events. Every statistic used
here is a function of sums over documents (a ratio of sums, a correlation, an area under a curve from counts); one
matrix product of resampling weights and per-document sums therefore gives all replicates at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def document_weights(documents: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each document occurs in each bootstrap replicate.

    Returns
    -------
    float64 [replicates + 1, documents]
        Row 0 is all ones: the observed sample.
    """
    drawn = rng.multinomial(documents, np.full(documents, 1 / documents), size=replicates)
    return np.concatenate([np.ones((1, documents)), drawn]).astype(np.float64)


def replicate(
    sums: np.ndarray, weights: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Evaluate a statistic on the observed sample and on all replicates.

    Parameters
    ----------
    sums : float64 [documents, ...]
        Per-document sums.
    weights : float64 [replicates + 1, documents]
    statistic : callable
        Maps totals [replicates + 1, ...] to values [replicates + 1].

    Returns
    -------
    float64 [replicates + 1]
        The observed value first.
    """
    totals = np.tensordot(weights, sums, axes=(1, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistic(totals)


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of replicates (the observed value in place 0 is left out); NaN if too few are finite."""
    low, high = intervals(values[None], confidence)[:, 0]
    return float(low), float(high)


def sign_p_value(differences: np.ndarray) -> float:
    """Two-sided bootstrap p-value that a difference is zero (observed value in place 0 is left out).

    Twice the smaller share of replicates on either side of zero, with one pseudo-count, so never below
    2 / (replicates + 1) (Davison and Hinkley 1997, section 4.2).
    """
    finite = differences[1:][np.isfinite(differences[1:])]
    if not len(finite):
        return float("nan")
    below = (np.count_nonzero(finite <= 0) + 1) / (len(finite) + 1)
    above = (np.count_nonzero(finite >= 0) + 1) / (len(finite) + 1)
    return float(min(1.0, 2 * min(below, above)))


def intervals(values: np.ndarray, confidence: float) -> np.ndarray:
    """Return `interval` of many statistics ``[C, replicates + 1]`` at once, ``[2, C]``."""
    tail = (1 - confidence) / 2
    drawn = values[:, 1:]
    finite = np.isfinite(drawn)
    out = np.full((2, len(values)), np.nan)
    whole = finite.all(1) & (drawn.shape[1] > 0)
    if whole.any():
        # Partial sorts instead of the slow path for missing values.
        out[:, whole] = np.quantile(drawn[whole], [tail, 1 - tail], axis=1)
    most = ~whole & (finite.sum(1) >= max(1, 0.9 * drawn.shape[1]))
    if most.any():
        held = np.where(finite[most], drawn[most], np.nan)
        out[:, most] = np.nanquantile(held, [tail, 1 - tail], axis=1)
    return out


def adjust_fdr(p_values: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values; NaNs stay NaN and do not count as tests.

    The k-th smallest of m p-values becomes the smallest m p / k from there on (Benjamini and Hochberg 1995). scipy has
    this, too, but importing its statistics takes a second in every job.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.isfinite(p_values)
    p, count = p_values[known], int(known.sum())
    order = np.argsort(-p, kind="stable")
    ranks = np.arange(count, 0, -1)
    values = np.empty(count)
    values[order] = np.minimum.accumulate(np.minimum(1.0, p[order] * count / ranks))
    adjusted[known] = values
    return adjusted
