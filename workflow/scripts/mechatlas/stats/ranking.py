"""Ranking quality from counts per score bin, so that documents can be resampled by adding counts."""

from __future__ import annotations

import numpy as np

BINS = 256


def score_bins(scores: np.ndarray) -> np.ndarray:
    """Map predicted attention in [0, 1] to bins 0 .. BINS - 1, fine near zero (int64).

    The square root spreads small predictions: most pairs are predicted below 1 %. Pairs in one bin count as ties.
    """
    return np.minimum((np.sqrt(np.clip(scores, 0, 1)) * BINS).astype(np.int64), BINS - 1)


def roc_auc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve from counts; ties count half. NaN without positives or negatives.

    Parameters
    ----------
    positives, negatives : float64 [..., BINS]
        Weighted counts per score bin, low scores first.

    Returns
    -------
    float64 [...]
    """
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum(-1)
    return wins / (positives.sum(-1) * negatives.sum(-1))


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Average precision from counts: sum over bins of (recall step) x (precision at or above the bin).

    This is the step-wise definition of scikit-learn's ``average_precision_score`` with ties in one step.

    Parameters
    ----------
    positives, negatives : float64 [..., BINS]

    Returns
    -------
    float64 [...]
        NaN without positives.
    """
    at_or_above = np.flip(np.cumsum(np.flip(positives, -1), -1), -1)
    all_above = at_or_above + np.flip(np.cumsum(np.flip(negatives, -1), -1), -1)
    precision = np.divide(
        at_or_above, all_above, out=np.zeros_like(at_or_above), where=all_above > 0
    )
    return (positives * precision).sum(-1) / positives.sum(-1)
