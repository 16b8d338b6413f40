"""Numbers for a whole model: means over heads with intervals, heads that beat their controls, the curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.records import OWN, explainers_of
from mechatlas.io import rng_for
from mechatlas.score.patterns import PATTERN_METRICS, SUMS
from mechatlas.stats.bootstrap import document_weights, interval, replicate

MAIN_METRIC = "iou"
#: Controls are compared where a head does something: most of any IoU is agreement that attention rests on BOS.
CONTROL_METRIC = "iou_without_sink"
#: Metrics that are ratios per head with a denominator near zero for some; their summary is the median over heads.
BY_MEDIAN = frozenset({"loss_recovered"})


def mean_over_heads(
    documents: pd.DataFrame, control: str, bootstrap: int, confidence: float, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Average each pattern metric over heads, with an interval by bootstrap over test documents.

    Parameters
    ----------
    documents : data frame
        document_scores.parquet, rows of one explainer: layer, head, control, doc and the columns `SUMS`.
    control : str
        Which rows to take ("none" for the explanations themselves).
    bootstrap, confidence, seed
        As in `mechatlas.score.summary.SummarySettings`.

    Returns
    -------
    dict
        Metric -> (mean, low, high). One resample of documents serves all heads, because heads share them.
    """
    documents = documents[documents["control"] == control]
    if documents.empty:
        return dict.fromkeys(PATTERN_METRICS, (math.nan, math.nan, math.nan))
    names = sorted(documents["doc"].astype(str).unique())
    place = {name: i for i, name in enumerate(names)}
    weights = document_weights(len(names), bootstrap, rng_for(seed, "bootstrap", "patterns"))
    replicates: dict[str, list[np.ndarray]] = {metric: [] for metric in PATTERN_METRICS}
    for _, group in documents.groupby(["layer", "head"]):
        sums = np.zeros((len(names), len(SUMS)))
        sums[group["doc"].astype(str).map(place).to_numpy()] = group[list(SUMS)].to_numpy()
        for metric, statistic in PATTERN_METRICS.items():
            replicates[metric].append(replicate(sums, weights, statistic))
    return {
        metric: _mean([v for v in values if np.isfinite(v[0])], confidence)
        for metric, values in replicates.items()
    }


def _mean(values: list[np.ndarray], confidence: float) -> tuple[float, float, float]:
    if not values:
        return float("nan"), float("nan"), float("nan")
    mean = np.mean(values, axis=0)
    return float(mean[0]), *interval(mean, confidence)


def is_same_model_control(name: str) -> bool:
    """Tell whether scores under this name are those of a control on the same model."""
    return name not in (OWN, "random_weights")


def beats_every_control(scores: pd.DataFrame, metric: str = CONTROL_METRIC) -> pd.Series:
    """Tell for each unit whether its explanation beats every control on the same model.

    The random-weight control is not counted: another model's heads may be easier to explain than this one's, as
    nearly uniform attention is.

    Returns
    -------
    Series of bool, by unit
        Only units with at least one comparison.
    """
    rows = scores[(scores["metric"] == metric) & scores["beats_control"].notna()]
    rows = rows[rows["control"].map(is_same_model_control).astype(bool)]
    return rows["beats_control"].astype(bool).groupby(rows["unit"]).all()


def headlines(
    records: Iterable[Mapping[str, Any]],
    scores: pd.DataFrame,
    curve: pd.DataFrame,
    documents: pd.DataFrame,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Summarise a model and source in a few numbers for each explainer (headline.json).

    Parameters
    ----------
    records : iterable of mapping
        Explanations.
    scores, curve, documents : data frame
        scores.parquet, replacement.parquet, document_scores.parquet.
    bootstrap, confidence, seed
        Those of scores.parquet.

    Returns
    -------
    dict
        Explainer -> ``explanations`` (see `explanation_counts`) and what `headline` returns.
    """
    records = [record for record in records if record["control"] == OWN]
    result = {}
    for explainer in explainers_of(records):
        tables = (table[table["explainer"] == explainer] for table in (scores, curve, documents))
        result[explainer] = {
            "explanations": explanation_counts(r for r in records if r["explainer"] == explainer),
            **headline(*tables, bootstrap, confidence, seed),
        }
    return result


USAGE = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "price")


def explanation_counts(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count what an explainer did, and what it cost.

    Returns
    -------
    dict
        ``heads`` (asked for), ``explained``, ``with_program``, ``failures`` (reason -> heads); for an explainer that
        asks a language model also ``usage`` (sums of `USAGE`; ``price`` is None if any price is unknown).
    """
    records = list(records)
    failed = [record.get("reason") or "no text" for record in records if not record["text"]]
    counts: dict[str, Any] = {
        "heads": len(records),
        "explained": len(records) - len(failed),
        "with_program": sum(record["program"] is not None for record in records),
        "failures": {reason: failed.count(reason) for reason in sorted(set(failed))},
    }
    if records and "requests" in records[0]:
        values = {name: [record[name] for record in records] for name in USAGE}
        counts["usage"] = {
            name: None if None in column else sum(column) for name, column in values.items()
        }
    return counts


def headline(
    scores: pd.DataFrame,
    curve: pd.DataFrame,
    documents: pd.DataFrame,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Summarise one explainer's scores in a few numbers.

    Parameters
    ----------
    scores, curve, documents, bootstrap, confidence, seed
        See `headlines`; rows of one explainer.

    Returns
    -------
    dict
        ``heads``, ``scored`` (counts), ``means`` (metric -> value, low, high, heads and ``controls``), ``beats``
        (count and of), ``perplexity`` (of the untouched model), ``replacement`` (rows of the curve), ``bootstrap``,
        ``confidence``. A number that does not exist is None. Intervals are given for pattern metrics, of which
        there are sums per document.
    """
    own = scores[scores["control"] == "none"]
    main = own[own["metric"] == MAIN_METRIC]
    intervals = mean_over_heads(documents, "none", bootstrap, confidence, seed)
    beats = beats_every_control(scores)
    first = curve.iloc[0] if len(curve) else None
    return {
        "heads": int(own["unit"].nunique()),
        "scored": int((main["status"] == "scored").sum()),
        "means": {
            metric: _metric_means(scores[scores["metric"] == metric], intervals.get(metric))
            for metric in own["metric"].unique()
        },
        "beats": {"count": int(beats.sum()), "of": int(len(beats))},
        "perplexity": None if first is None else _number(first["perplexity"] / first["ratio"]),
        "replacement": [
            {key: _number(value) for key, value in row.items() if key != "explainer"}
            for row in curve.to_dict("records")
        ],
        "bootstrap": bootstrap,
        "confidence": confidence,
    }


def _metric_means(
    rows: pd.DataFrame, with_interval: tuple[float, float, float] | None
) -> dict[str, Any]:
    groups = rows.groupby("control")["value"]
    means = groups.median() if rows["metric"].isin(BY_MEDIAN).any() else groups.mean()
    low, high = with_interval[1:] if with_interval else (math.nan, math.nan)
    return {
        "value": _number(means.get("none", math.nan)),
        "low": _number(low),
        "high": _number(high),
        "heads": int(rows.loc[rows["control"] == "none", "value"].notna().sum()),
        "controls": {str(name): _number(value) for name, value in means.items() if name != "none"},
    }


def _number(value: Any) -> Any:
    """Return a plain JSON value: None for a number that does not exist."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
