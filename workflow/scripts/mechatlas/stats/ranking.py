"""Ranking quality from counts per score bin, so that documents can be resampled by adding counts."""

from __future__ import annotations

import numpy as np

BINS = 512


def score_bins(scores: np.ndarray) -> np.ndarray:
    """Map predicted attention in [0, 1] to bins 0 .. BINS - 1, fine near zero (int64).

    The fourth root spreads small predictions: a head that rests on BOS has most of its pairs below 1e-5, and they are
    ranked too. Pairs in one bin count as ties: a hundredth apart near 1, a factor of two near 1e-9, all below 1e-11.
    """
    root = np.sqrt(np.sqrt(np.clip(scores, 0, 1)))
    return np.minimum((root * BINS).astype(np.int64), BINS - 1)


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


def roc_auc_replicates(
    positives: np.ndarray, negatives: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """`roc_auc` of resampled documents.

    The number of won pairs is bilinear in the weights of the documents, so that the wins between each two documents
    are counted once for all replicates: the cost of a replicate does not depend on the number of bins.

    Parameters
    ----------
    positives, negatives : float64 [documents, BINS]
    weights : float64 [replicates, documents]

    Returns
    -------
    float64 [replicates]
        NaN where a replicate has no positives or no negatives.
    """
    below = np.cumsum(negatives, axis=-1) - 0.5 * negatives
    wins = positives @ below.T
    won = ((weights @ wins) * weights).sum(-1)
    pairs = (weights @ positives.sum(-1)) * (weights @ negatives.sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return won / pairs


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


def average_precision_replicates(
    positives: np.ndarray, negatives: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """`average_precision` of resampled documents.

    Counts at or above a bin are linear in the weights, so they are cumulated for each document and not for each
    replicate; bins without positives add nothing.

    Parameters
    ----------
    positives, negatives : float64 [documents, BINS]
    weights : float64 [replicates, documents]

    Returns
    -------
    float64 [replicates]
        NaN where a replicate has no positives.
    """
    used = positives.any(0)
    above = [np.flip(np.cumsum(np.flip(x, -1), -1), -1) for x in (positives, positives + negatives)]
    step, true, every = (weights @ x[:, used] for x in (positives, *above))
    true /= np.maximum(every, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (step * true).sum(-1) / step.sum(-1)
