"""How well predicted attention rows match true ones, as sums per document.

Query 0 is left out everywhere: its row is [1] by construction. Each quantity is kept as a sum over the rows or entries
of a document, so that any set of documents can be scored by adding (see `mechatlas.stats.bootstrap`). Metrics with the
suffix ``_without_sink`` leave column 0 (BOS) out of both patterns, without renormalising.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mechatlas.stats.ranking import BINS, average_precision, score_bins

SUMS = (
    "rows",
    "minimum",
    "maximum",
    "js",
    "top1",
    "minimum_without_sink",
    "maximum_without_sink",
    "top1_without_sink",
    "entries",
    "x",
    "y",
    "xx",
    "yy",
    "xy",
    "entries_without_sink",
    "x_without_sink",
    "y_without_sink",
    "xx_without_sink",
    "yy_without_sink",
    "xy_without_sink",
)
INDEX = {name: i for i, name in enumerate(SUMS)}


def pattern_sums(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Compare two patterns window by window.

    Parameters
    ----------
    predicted, true : float32 [W, T, T]
        Attention patterns (rows sum to 1).

    Returns
    -------
    float64 [W, len(SUMS)]
        ``js`` is the sum over rows of the Jensen-Shannon distance (square root of the divergence to base 2, in
        [0, 1]); ``top1`` counts rows whose largest key agrees; ``x .. xy`` are moments of (predicted, true) over
        all causal entries.
    """
    p, t = predicted[:, 1:].astype(np.float64), true[:, 1:].astype(np.float64)
    windows, rows, length = p.shape
    causal = float(sum(range(2, length + 1)))
    out = np.zeros((windows, len(SUMS)))

    def put(name: str, value: np.ndarray | float) -> None:
        out[:, INDEX[name]] = value

    put("rows", rows)
    put("js", js_distance(p, t).sum(-1))
    overlap, mass = np.minimum(p, t), p + t
    for suffix, keys in (("", slice(None)), ("_without_sink", slice(1, None))):
        a, b = p[:, :, keys], t[:, :, keys]
        low = overlap[:, :, keys].sum((1, 2))
        put("minimum" + suffix, low)
        put("maximum" + suffix, mass[:, :, keys].sum((1, 2)) - low)
        # A row predicted to hold nothing but the sink names no key.
        agrees = (a.argmax(-1) == b.argmax(-1)) & (a.max(-1) > 0)
        put("top1" + suffix, agrees.sum(-1))
        put("entries" + suffix, causal - (rows if suffix else 0))
        for name, value in (("x", a), ("y", b), ("xx", a * a), ("yy", b * b), ("xy", a * b)):
            put(name + suffix, value.sum((1, 2)))
    return out


def js_distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance to base 2 between the last axes of two arrays: float64 [...], in [0, 1]."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / middle), 0).sum(-1)
        right = np.where(q > 0, q * np.log2(q / middle), 0).sum(-1)
    return np.sqrt(np.clip((left + right) / 2, 0, 1))


def active_counts(predicted: np.ndarray, true: np.ndarray, threshold: float) -> np.ndarray:
    """Count pairs per bin of predicted attention, apart for truly active and other pairs.

    Parameters
    ----------
    predicted, true : float32 [W, T, T]
    threshold : float
        A pair (query, key other than BOS) is active if its attention is at least this.

    Returns
    -------
    int64 [W, 2, BINS]
        Row 0 the active pairs, row 1 the others: every causal pair is counted, so the base rate is the true one.
    """
    windows, length, _ = predicted.shape
    causal = np.tril(np.ones((length, length), dtype=bool))
    causal[:, 0] = False
    bins = score_bins(predicted[:, causal])
    active = true[:, causal] >= threshold
    codes = bins + BINS * (~active) + 2 * BINS * np.arange(windows)[:, None]
    return np.bincount(codes.ravel(), minlength=2 * BINS * windows).reshape(windows, 2, BINS)


def _ratio(upper: str, lower: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda totals: totals[..., INDEX[upper]] / totals[..., INDEX[lower]]


def _correlation(suffix: str) -> Callable[[np.ndarray], np.ndarray]:
    def statistic(totals: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = (
            totals[..., INDEX[name + suffix]] for name in ("entries", "x", "y", "xx", "yy", "xy")
        )
        covariance = xy - x * y / n
        spread = (xx - x * x / n) * (yy - y * y / n)
        # A constant pattern has no correlation; rounding leaves its variance a hair above zero.
        return np.where(spread > 1e-18, covariance / np.sqrt(np.maximum(spread, 1e-300)), np.nan)

    return statistic


#: Metrics of predicted against true patterns: name -> function of summed `SUMS`.
PATTERN_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "iou": _ratio("minimum", "maximum"),
    "iou_without_sink": _ratio("minimum_without_sink", "maximum_without_sink"),
    "js_distance": _ratio("js", "rows"),
    "correlation": _correlation(""),
    "correlation_without_sink": _correlation("_without_sink"),
    "top1_accuracy": _ratio("top1", "rows"),
    "top1_accuracy_without_sink": _ratio("top1_without_sink", "rows"),
}
#: Metrics for which less is better.
LOWER_IS_BETTER = frozenset({"js_distance"})


def active_average_precision(totals: np.ndarray) -> np.ndarray:
    """Average precision of finding active pairs, from summed `active_counts` [..., 2, BINS]."""
    return average_precision(totals[..., 0, :], totals[..., 1, :])
