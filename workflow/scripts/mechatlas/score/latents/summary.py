"""From sums per document to scores of latents with intervals, controls and adjusted p-values.

Documents are resampled, the same ones for an explanation and its controls. p-values against a control are adjusted over
the latents of a dictionary (Benjamini and Hochberg 1995), apart for each explainer, metric and control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.latents.data import Latent
from mechatlas.io import rng_for
from mechatlas.score.latents.names import OWN
from mechatlas.score.latents.tokens import TokenSums
from mechatlas.stats.bootstrap import (
    adjust_fdr,
    document_weights,
    interval,
    replicate,
    sign_p_value,
)
from mechatlas.stats.ranking import average_precision, roc_auc

TOP_AND_RANDOM = "_top_and_random"
TOKEN_METRICS = (
    *("correlation", "correlation_top_and_random", "variance_explained", "average_precision"),
    *("auc", "auc_negative_similar", "auc_negative_coactive", "precision", "recall"),
)
METRICS = (*TOKEN_METRICS, "loss_recovered", "steering_auc")
COLUMNS = [
    *("unit", "layer", "latent", "explainer", "metric", "control", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "p_value", "q_value", "beats_control"),
    *("documents", "status", "reason"),
]
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LatentSummarySettings:
    """Settings of the summary (config: score, latents).

    Attributes
    ----------
    bootstrap : int
    confidence, fdr : float
    min_events : int
        Fewest active test tokens, and fewest negatives of a kind, for a score.
    seed : int
    """

    bootstrap: int
    confidence: float
    fdr: float
    min_events: int
    seed: int


@dataclass
class Measured:
    """Replicates of one metric, the observed value first, or why there are none."""

    values: np.ndarray | None = None
    documents: int = 0
    reason: str = ""


@dataclass
class LatentScores:
    """Gathers the scores of all latents and makes a table of them.

    Parameters
    ----------
    settings : LatentSummarySettings
    documents : int
        Test documents.
    """

    settings: LatentSummarySettings
    documents: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = rng_for(self.settings.seed, "bootstrap", "latents")
        self.weights = document_weights(self.documents, self.settings.bootstrap, rng)

    def tokens(self, sums: TokenSums) -> dict[str, Measured]:
        """Return the metrics of `TOKEN_METRICS` of one prediction."""
        counts = {kind: values.astype(np.float64) for kind, values in sums.counts.items()}
        few = _too_few(counts, self.settings.min_events)
        known = sums.calibration
        data: dict[str, tuple[np.ndarray, Statistic]] = {
            "correlation": (sums.moments(), pearson),
            "correlation_top_and_random": (sums.moments(TOP_AND_RANDOM), pearson),
            "variance_explained": (
                sums.moments(),
                lambda t: variance_explained(t, known.slope, known.level),
            ),
            "average_precision": (_pair(counts, "active", "other"), _precision_curve),
            "auc": (_pair(counts, "active", "other"), _auc),
            "auc_negative_similar": (_pair(counts, "event_active", "negative_similar"), _auc),
            "auc_negative_coactive": (_pair(counts, "event_active", "negative_coactive"), _auc),
            "precision": (sums.decisions, lambda t: t[:, 0] / t[:, 1]),
            "recall": (sums.decisions, lambda t: t[:, 0] / t[:, 2]),
        }
        found = {}
        for metric, (values, statistic) in data.items():
            reason = few.get(metric) or few.get("", "")
            found[metric] = Measured(reason=reason) if reason else self.measure(values, statistic)
        return found

    def measure(self, sums: np.ndarray, statistic: Statistic) -> Measured:
        """Resample documents; ``sums`` is float64 [documents, ...]."""
        values = replicate(sums, self.weights, statistic)
        documents = int((np.abs(sums).reshape(len(sums), -1).sum(1) > 0).sum())
        if not np.isfinite(values[0]):
            return Measured(reason="the prediction or the activation is constant on test documents")
        return Measured(values, documents)

    def add(
        self, latent: Latent, explainer: str, found: Mapping[str, Mapping[str, Measured]]
    ) -> None:
        """Add the scores of one latent and explainer: control -> metric -> measured."""
        own = found.get(OWN, {})
        for control, metrics in found.items():
            for metric, measured in metrics.items():
                self.rows.append(
                    {
                        **latent.named,
                        **{"explainer": explainer, "metric": metric, "control": control},
                        **self._row(measured, None if control == OWN else own.get(metric)),
                    }
                )

    def _row(self, measured: Measured, own: Measured | None) -> dict[str, Any]:
        confidence = self.settings.confidence
        if measured.values is None:
            return {"documents": 0, "status": "unscored", "reason": measured.reason}
        low, high = interval(measured.values, confidence)
        row = {"value": measured.values[0], "low": low, "high": high, "reason": ""}
        row |= {"documents": measured.documents, "status": "scored"}
        if own is not None and own.values is not None:
            difference = own.values - measured.values
            low, high = interval(difference, confidence)
            row |= {"difference": difference[0], "difference_low": low, "difference_high": high}
            row["p_value"] = sign_p_value(difference)
        return row

    def table(self) -> pd.DataFrame:
        """Return scores.parquet: columns `COLUMNS`.

        Rows with control "none" hold the explanation's own score, others the control's (or baseline's) score and the
        explanation's advantage over it.
        """
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        numbers = ["value", "low", "high", "difference", "difference_low", "difference_high"]
        frame = frame.astype(dict.fromkeys([*numbers, "p_value", "q_value"], np.float64))
        for _, group in frame[frame["control"] != OWN].groupby(["explainer", "metric", "control"]):
            frame.loc[group.index, "q_value"] = adjust_fdr(group["p_value"].to_numpy())
        significant = (frame["q_value"] <= self.settings.fdr) & (frame["difference"] > 0)
        frame["beats_control"] = significant.where(frame["q_value"].notna(), None)
        return frame.reset_index(drop=True)


def unscored(reason: str) -> dict[str, Measured]:
    """Return every metric without a value, with the reason."""
    return {metric: Measured(reason=reason) for metric in METRICS}


def pearson(t: np.ndarray) -> np.ndarray:
    """Pearson correlation from moments [..., 6] (n, x, y, xx, yy, xy); NaN where one side is constant."""
    n, x, y, xx, yy, xy = (t[:, i] for i in range(6))
    spread = np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0)
    spread = np.where(spread > 1e-18, spread, np.nan)
    return (xy - x * y / n) / np.sqrt(spread)


def variance_explained(t: np.ndarray, slope: float, level: float) -> np.ndarray:
    """Share of the variance of y that slope x + level explains, from moments [..., 6]; negative if worse than none."""
    n, x, y, xx, yy, xy = (t[:, i] for i in range(6))
    error = yy - 2 * slope * xy - 2 * level * y
    error += slope**2 * xx + 2 * slope * level * x + level**2 * n
    total = yy - y * y / n
    return 1 - error / np.where(total > 1e-18, total, np.nan)


def _pair(counts: Mapping[str, np.ndarray], positive: str, negative: str) -> np.ndarray:
    both = np.stack([counts[positive], counts[negative]], axis=1)
    # Empty bins change neither measure, and most are: a program predicts few different values.
    return both[:, :, both.any((0, 1))]


def _auc(t: np.ndarray) -> np.ndarray:
    return roc_auc(t[:, 0], t[:, 1])


def _precision_curve(t: np.ndarray) -> np.ndarray:
    return average_precision(t[:, 0], t[:, 1])


def _too_few(counts: Mapping[str, np.ndarray], least: int) -> dict[str, str]:
    """Return why metrics cannot be had, by metric; under "" what holds for all of them."""
    active = int(counts["active"].sum())
    found = {}
    if active < least:
        found[""] = f"{active} active test tokens, fewer than {least}"
    for kind in ("negative_similar", "negative_coactive"):
        have = int(min(counts[kind].sum(), counts["event_active"].sum()))
        if have < least:
            words = "hard negatives or events"
            found[f"auc_{kind}"] = f"{have} {words} in test documents, fewer than {least}"
    return found
