"""The scores that a judge gives, with their words, in the order in which they are shown."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Scorer and metric in the order in which they are shown, with their words.
METRICS: dict[tuple[str, str], str] = {
    ("detection", "auc"): "detection, AUC",
    ("detection", "balanced_accuracy"): "detection, balanced accuracy",
    ("detection", "f1"): "detection, F1",
    ("fuzzing", "auc"): "fuzzing, AUC",
    ("fuzzing", "balanced_accuracy"): "fuzzing, balanced accuracy",
    ("fuzzing", "f1"): "fuzzing, F1",
    ("pair_auc", "auc_negative_same_query"): "pair AUC, same query",
    ("pair_auc", "auc_negative_same_key"): "pair AUC, same key",
    ("pair_auc", "auc_negative_same_distance"): "pair AUC, same distance",
    ("pair_auc", "auc_negative_same_token"): "pair AUC, same token",
    ("pair_auc", "auc_negative_same_window"): "pair AUC, same window",
    ("simulation", "correlation"): "simulation, correlation",
    ("simulation", "correlation_random_only"): "simulation, correlation, random only",
    ("simulation", "top1"): "simulation, top-1",
    ("intruder", "accuracy"): "intruder, accuracy",
    ("firing", "precision"): "precision at the true rate",
    ("firing", "recall"): "recall at the true rate",
}


def shown_metrics(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (scorer, metric) pairs of a table of scores in the order in which they are shown."""
    present = set(zip(scores["scorer"], scores["metric"], strict=True))
    return [key for key in METRICS if key in present]


def of_score(scores: pd.DataFrame, scorer: str, metric: str) -> pd.DataFrame:
    """Return the rows of a scorer and metric."""
    return scores[(scores["scorer"] == scorer) & (scores["metric"] == metric)]


def ceiling_and_floor(scores: pd.DataFrame, scorer: str, metric: str) -> tuple[float, float]:
    """Return the mean score of planted units with their own text and with another one's; NaN where there is none."""
    planted = of_score(scores, scorer, metric)
    planted = planted[planted["layer"] < 0].groupby("control")["value"].mean()
    return float(planted.get("none", np.nan)), float(planted.get("swapped", np.nan))
