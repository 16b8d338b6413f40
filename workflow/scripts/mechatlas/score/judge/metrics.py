"""What a judge's answers amount to: metrics as functions of sums per document, so that documents can be resampled.

Each metric is taken in the same way of the judge's answers, of the program's predictions and of the look-up's, on the
same items, so that they can be compared. Only whole groups of items count: an active item whose inactive partner has no
answer is left out, or the partners' common length and position would give something away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechatlas.score.judge.items import RANDOM_PLACE
from mechatlas.stats.bootstrap import interval, replicate
from mechatlas.stats.ranking import roc_auc

#: Answers from here on count as yes where a metric needs yes or no.
YES = 5
JUDGE, PROGRAM, LOOKUP = "value", "program_prediction", "lookup_prediction"
PREDICTORS = (JUDGE, PROGRAM, LOOKUP)
#: Metrics of every scorer; the pair AUC has one per kind of negative.
METRICS = {
    "detection": ("auc", "balanced_accuracy", "f1"),
    "fuzzing": ("auc", "balanced_accuracy", "f1"),
    "simulation": ("correlation", "top1"),
    "intruder": ("accuracy",),
    "firing": ("precision", "recall"),
}
#: Where a metric stands when answers know nothing; None where that depends on the unit.
CHANCE = {"auc": 0.5, "balanced_accuracy": 0.5, "f1": None, "correlation": 0.0, "top1": None}
CHANCE |= {"accuracy": 0.2, "precision": None, "recall": None}
#: Over the stretches that were drawn at random alone, where there are such.
RANDOM_ONLY = "correlation_random_only"
CHANCE[RANDOM_ONLY] = 0.0

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """Sums per document, by predictor, and the function that makes a metric of totals.

    ``doubt`` holds the sums of two made-up documents, one on which the judge is right and one on which it is wrong,
    for metrics that rest on few groups; see `judge_interval`.
    """

    sums: Mapping[str, np.ndarray]
    statistic: Statistic
    groups: int
    documents: int
    doubt: np.ndarray | None = None

    def replicates(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metric of every predictor for each resample, those that are defined on the sample itself."""
        found = {name: replicate(sums, weights, self.statistic) for name, sums in self.sums.items()}
        return {name: values for name, values in found.items() if np.isfinite(values[0])}

    def doubted(self, weights: np.ndarray) -> np.ndarray | None:
        """Return the judge's metric with the made-up documents among the others, which have the last weights."""
        if self.doubt is None or JUDGE not in self.sums:
            return None
        return replicate(np.concatenate([self.sums[JUDGE], self.doubt]), weights, self.statistic)


def judge_interval(
    values: np.ndarray, doubted: np.ndarray | None, confidence: float
) -> tuple[float, float]:
    """Return the percentile interval of a metric, widened where few groups were all answered alike.

    A judge that was right twenty times of twenty would get the interval [1, 1], as a resample of right answers holds no
    wrong one. The interval therefore also covers that of the sample with one right and one wrong document added, in the
    spirit of Agresti and Coull 1998. In simulations this brings coverage at 20 groups from 60 to 88 % (judges that err
    in 5 to 10 % of cases) to 95 % and more; the AUCs of 50 against 50 items have 94 % without it.
    """
    low, high = interval(values, confidence)
    if doubted is None:
        return low, high
    also = interval(doubted, confidence)
    return float(np.nanmin([low, also[0]])), float(np.nanmax([high, also[1]]))


def metric_names(scorer: str, roles: pd.Series) -> tuple[str, ...]:
    """Return the metrics of a scorer, given the roles of its items."""
    if scorer == "simulation" and (roles == RANDOM_PLACE).any():
        return (*METRICS[scorer], RANDOM_ONLY)
    if scorer != "pair_auc":
        return METRICS[scorer]
    return tuple(f"auc_{role}" for role in sorted(set(roles)) if role.startswith("negative_"))


def prepare(
    scorer: str, metric: str, items: pd.DataFrame, documents: Mapping[str, int], threshold: float
) -> Prepared:
    """Sum what a metric needs.

    Parameters
    ----------
    scorer, metric : str
    items : data frame
        Items of one unit and scorer with the judge's ``value`` (missing where unscored).
    documents : mapping
        Place of each document.
    threshold : float
        Predicted attention from which a program or look-up says yes.
    """
    if scorer == "pair_auc":
        items = items[items["role"].isin(("active", metric.removeprefix("auc_")))]
        items = items[items.groupby("group")["role"].transform("nunique") == 2]
    if metric == RANDOM_ONLY:
        items = items[items["role"] == RANDOM_PLACE]
    items = complete_groups(items)
    at = items["doc"].map(documents).to_numpy(dtype=np.int64)
    size = len(documents)
    columns = {name: items[name].to_numpy(np.float64) for name in PREDICTORS}
    columns = {name: v for name, v in columns.items() if np.isfinite(v).all() and len(v)}
    labels = items["label"].to_numpy(bool)
    doubt = None
    if metric.startswith("auc"):
        sums = {name: _rank_counts(v, labels, at, size) for name, v in columns.items()}
        statistic: Statistic = _auc
    elif metric in ("balanced_accuracy", "f1"):
        least = {JUDGE: YES, PROGRAM: threshold, LOOKUP: threshold}
        sums = {n: _decisions(v >= least[n], labels, at, size) for n, v in columns.items()}
        statistic = balanced_accuracy if metric == "balanced_accuracy" else f1
    elif metric in ("precision", "recall"):
        weight = items["weight"].to_numpy(np.float64)
        least = {JUDGE: YES, PROGRAM: threshold, LOOKUP: threshold}
        sums = {n: _weighted(v >= least[n], labels, weight, at, size) for n, v in columns.items()}
        statistic = precision if metric == "precision" else recall
    elif metric in ("correlation", RANDOM_ONLY):
        truth = items["strength"].to_numpy(np.float64)
        sums = {name: _moments(v, truth, at, size) for name, v in columns.items()}
        statistic = correlation
        if JUDGE in columns:
            doubt = _doubted_places(columns[JUDGE], truth)
    else:
        if metric == "top1":
            items = items[items["label"]]
        sums = {name: _credits(items, name, metric, documents) for name in columns}
        statistic, doubt = _share, np.array([[1.0, 1.0], [0.0, 1.0]])
    return Prepared(sums, statistic, items["group"].nunique(), items["doc"].nunique(), doubt)


def complete_groups(items: pd.DataFrame) -> pd.DataFrame:
    """Return the items of groups in which every item has an answer."""
    return items[items[JUDGE].notna().groupby(items["group"]).transform("all")]


def separation(labels: np.ndarray, values: np.ndarray) -> float:
    """Area under the ROC curve of values for labels, ties half; NaN without one of the two classes."""
    counts = _rank_counts(
        np.asarray(values, float), np.asarray(labels, bool), np.zeros(len(labels), np.int64), 1
    )[0]
    if not counts.sum(1).all():
        return float("nan")
    return float(roc_auc(counts[0], counts[1]))


def _rank_counts(values: np.ndarray, labels: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """Count active and other items by document and rank of their value: float64 [documents, 2, ranks]."""
    levels, rank = np.unique(values, return_inverse=True)
    counts = np.zeros((size, 2, len(levels)))
    np.add.at(counts, (at, (~labels).astype(np.int64), rank), 1)
    return counts


def _decisions(yes: np.ndarray, labels: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """Count by document: yes and active, active, yes and inactive, inactive."""
    parts = (yes & labels, labels, yes & ~labels, ~labels)
    return np.stack([np.bincount(at, part, size) for part in parts], axis=1)


def _weighted(
    yes: np.ndarray, labels: np.ndarray, weight: np.ndarray, at: np.ndarray, size: int
) -> np.ndarray:
    """Sum weights by document: yes and active, active, yes and inactive."""
    parts = (yes & labels, labels, yes & ~labels)
    return np.stack([np.bincount(at, part * weight, size) for part in parts], axis=1)


def precision(t: np.ndarray) -> np.ndarray:
    """Share of what is said to be active that is, from weights [..., 3]; NaN where nothing is."""
    return t[:, 0] / (t[:, 0] + t[:, 2])


def recall(t: np.ndarray) -> np.ndarray:
    """Share of what is active that is said to be, from weights [..., 3]."""
    return t[:, 0] / t[:, 1]


def _auc(t: np.ndarray) -> np.ndarray:
    return roc_auc(t[:, 0], t[:, 1])


def balanced_accuracy(t: np.ndarray) -> np.ndarray:
    """Mean share of right answers among active and among inactive items, from counts [..., 4]."""
    return (t[:, 0] / t[:, 1] + 1 - t[:, 2] / t[:, 3]) / 2


def f1(t: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall, from counts [..., 4]."""
    return 2 * t[:, 0] / (t[:, 0] + t[:, 2] + t[:, 1])


def _moments(values: np.ndarray, truth: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    # Moments about a common point, lest differences of large sums lose what small attention says.
    x, y = values - values.mean(), truth - truth.mean()
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(at, part, size) for part in parts], axis=1)


def _doubted_places(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Moments of the strongest place predicted as strongly as any, and of the same as weakly as any."""
    x, y = values - values.mean(), truth.max() - truth.mean()
    return np.array([[1, a, y, a * a, y * y, a * y] for a in (x.max(), x.min())])


def correlation(t: np.ndarray) -> np.ndarray:
    """Pearson correlation over all places together, from moments [..., 6]; NaN where one side is constant."""
    n, x, y, xx, yy, xy = (t[:, i] for i in range(6))
    spread = np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0)
    spread = np.where(spread > 1e-18, spread, np.nan)
    return (xy - x * y / n) / np.sqrt(spread)


def _credits(
    items: pd.DataFrame, column: str, metric: str, documents: Mapping[str, int]
) -> np.ndarray:
    """Sum by document: credit for the groups whose sought item is picked, groups; ties share the credit."""
    sums = np.zeros((len(documents), 2))
    for doc, credit in _picks(items, column, metric):
        sums[documents[doc]] += (credit, 1)
    return sums


def _picks(items: pd.DataFrame, column: str, metric: str) -> Iterator[tuple[str, float]]:
    for _, rows in items.groupby("group", sort=False):
        values = rows[column].to_numpy(np.float64)
        if metric == "top1":
            sought = int(rows["strength"].to_numpy().argmax())
        else:
            sought = int(rows["label"].to_numpy().argmax())
            # The judge names the intruder; a prediction makes it the least active item.
            values = values if column == JUDGE else -values
        best = values == values.max()
        yield str(rows["doc"].iloc[sought]), float(best[sought]) / float(best.sum())


def _share(t: np.ndarray) -> np.ndarray:
    return t[:, 0] / t[:, 1]
