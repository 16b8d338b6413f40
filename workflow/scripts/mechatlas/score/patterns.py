"""How well predicted attention rows match true ones, as sums per document.

Query 0 is left out everywhere: its row is [1] by construction. Each quantity is kept as a sum over the rows or entries
of a document, so that any set of documents can be scored by adding (see `mechatlas.stats.bootstrap`). Metrics with the
suffix ``_without_sink`` leave column 0 (BOS) out of both patterns, without renormalising.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mechatlas.stats.ranking import BINS, score_bins

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


Entries = tuple[np.ndarray, np.ndarray]


class Truth:
    """The true pattern of a head, prepared for comparison with many predictions.

    Only causal entries are compared: those off BOS row after row, [W, N], and those on BOS, [W, T-1].

    Parameters
    ----------
    pattern : float32 [W, T, T]
        Rows sum to 1.
    """

    def __init__(self, pattern: np.ndarray) -> None:
        length = pattern.shape[-1]
        self.rows = length - 1
        causal = np.tri(length, dtype=bool)[1:]
        causal[:, 0] = False
        self.places = np.flatnonzero(causal)
        # Query q has q keys off BOS; query 0 is left out.
        self.starts = np.cumsum(np.arange(length - 1))
        self.entries = self._entries(pattern)
        t = _wide(self.entries)
        self.log = self._by_row(_each(_times_log, t))
        self.top = [_top(pattern[:, 1:, keys])[0] for keys in KEYS]
        self.y, self.yy = _totals(t), _totals(_each(np.square, t))

    def sums(self, predicted: np.ndarray) -> np.ndarray:
        """Compare a predicted pattern, float32 [W, T, T], window by window: see `pattern_sums`."""
        p, t = _wide(self._entries(predicted)), _wide(self.entries)
        minimum = _totals(_each(np.minimum, p, t))
        moments = {
            **{"x": _totals(p), "xx": _totals(_each(np.square, p))},
            **{"y": self.y, "yy": self.yy, "xy": _totals(_each(np.multiply, p, t))},
        }
        out = np.zeros((len(predicted), len(SUMS)))

        def put(name: str, value: np.ndarray | float) -> None:
            out[:, INDEX[name]] = value

        put("rows", self.rows)
        put("js", self._js_distance(p, t).sum(-1))
        for sink, suffix in enumerate(SUFFIXES):
            put("minimum" + suffix, minimum[sink])
            put("maximum" + suffix, moments["x"][sink] + self.y[sink] - minimum[sink])
            top, largest = _top(predicted[:, 1:, KEYS[sink]])
            # A row predicted to hold nothing but the sink names no key.
            put("top1" + suffix, ((top == self.top[sink]) & (largest > 0)).sum(-1))
            put("entries" + suffix, len(self.places) + self.rows * (1 - sink))
            for name, values in moments.items():
                put(name + suffix, values[sink])
        return out

    def active_counts(self, predicted: np.ndarray, threshold: float) -> np.ndarray:
        """Count pairs per bin of predicted attention: see `active_counts`."""
        windows = len(predicted)
        bins = score_bins(self._entries(predicted)[0])
        bins += BINS * (self.entries[0] < threshold)
        bins += 2 * BINS * np.arange(windows)[:, None]
        return np.bincount(bins.ravel(), minlength=2 * BINS * windows).reshape(windows, 2, BINS)

    def _entries(self, pattern: np.ndarray) -> Entries:
        rows = pattern[:, 1:]
        return rows.reshape(len(rows), -1)[:, self.places], np.ascontiguousarray(rows[:, :, 0])

    def _by_row(self, values: Entries) -> np.ndarray:
        return np.add.reduceat(values[0], self.starts, axis=1) + values[1]

    def _js_distance(self, p: Entries, t: Entries) -> np.ndarray:
        """Jensen-Shannon distance of each row [W, T-1]: entropy of the middle less the mean entropy, to base 2."""
        middle = self._by_row(_each(lambda a, b: _times_log((a + b) / 2), p, t))
        divergence = (self._by_row(_each(_times_log, p)) + self.log) / 2 - middle
        return np.sqrt(np.clip(divergence, 0, 1))


def _each(function: Callable[..., np.ndarray], *entries: Entries) -> Entries:
    """Apply a function off BOS and on it."""
    off_bos, bos = (function(*values) for values in zip(*entries, strict=True))
    return off_bos, bos


def _wide(entries: Entries) -> Entries:
    return _each(lambda values: values.astype(np.float64), entries)


def _totals(entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Sums per window, with and without BOS."""
    off_bos = entries[0].sum(1)
    return off_bos + entries[1].sum(1), off_bos


SUFFIXES = ("", "_without_sink")
KEYS = (slice(None), slice(1, None))


def _times_log(values: np.ndarray) -> np.ndarray:
    """x log2 x, 0 at 0."""
    return values * np.log2(np.where(values > 0, values, 1))


def _top(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place and value of the largest entry of each row."""
    top = rows.argmax(-1)
    return top, np.take_along_axis(rows, top[..., None], -1)[..., 0]


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
    return Truth(true).sums(predicted)


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
    return Truth(true).active_counts(predicted, threshold)


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
