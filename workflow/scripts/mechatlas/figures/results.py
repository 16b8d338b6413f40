"""The result files of one model and source, joined into what reports show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.clusters import unit_names
from mechatlas.explain.records import OWN, explainers_of
from mechatlas.io import read_json, read_jsonl, read_table
from mechatlas.score.overall import CONTROL_METRIC, is_same_model_control

#: Metrics in the order in which they are shown, with their words.
METRICS: dict[str, str] = {
    "iou": "IoU",
    "iou_without_sink": "IoU without sink",
    "js_distance": "Jensen-Shannon distance",
    "correlation": "correlation",
    "correlation_without_sink": "correlation without sink",
    "top1_accuracy": "top-1 key",
    "top1_accuracy_without_sink": "top-1 key without sink",
    "average_precision": "average precision",
    "auc_negative_same_query": "AUC, same query",
    "auc_negative_same_key": "AUC, same key",
    "auc_negative_same_distance": "AUC, same distance",
    "loss_recovered": "loss recovered",
}
#: Metrics whose interval is among the columns of the table of heads.
WITH_INTERVAL = ("iou", "iou_without_sink", "loss_recovered")
MAIN_METRIC = "iou"
UNSCORED = "unscored"


@dataclass(frozen=True)
class HeadResults:
    """What reports read of one model and source.

    Attributes
    ----------
    explanations : list of dict
        Records of explanations.jsonl, controls left out.
    scores : data frame
        scores.parquet.
    clusters : dict
        clusters.json.
    curve : data frame
        replacement.parquet.
    """

    explanations: list[dict[str, Any]]
    scores: pd.DataFrame
    clusters: dict[str, Any]
    curve: pd.DataFrame

    @property
    def explainers(self) -> list[str]:
        """Names of the explainers, in the order of their records."""
        return explainers_of(self.explanations)

    def only(self, explainer: str) -> HeadResults:
        """Return the results of one explainer; clusters are those of all."""
        return HeadResults(
            [record for record in self.explanations if record["explainer"] == explainer],
            self.scores[self.scores["explainer"] == explainer],
            self.clusters,
            self.curve[self.curve["explainer"] == explainer],
        )


def read_results(
    explanations: str | Path | Sequence[str | Path],
    scores: str | Path,
    clusters: str | Path,
    curve: str | Path,
) -> HeadResults:
    """Read the result files of heads; explanations may be in one file or in one for each explainer."""
    paths = [explanations] if isinstance(explanations, str | Path) else explanations
    own = [r for path in paths for r in read_jsonl(path) if r["control"] == OWN]
    return HeadResults(own, read_table(scores), read_json(clusters), read_table(curve))


def head_table(results: HeadResults) -> pd.DataFrame:
    """Join explanations, scores and clusters: one row per explanation, in the order of layers and heads.

    Returns
    -------
    data frame
        ``unit``, ``layer``, ``head``, ``explainer``, ``kind``, ``text``, ``status``, ``reason``, ``documents``; each
        metric of `METRICS` (those of `WITH_INTERVAL` with ``_low`` and ``_high``); ``best_control`` (the control with
        the highest IoU without sink among those on the same model), its ``best_control_iou_without_sink``, the
        explanation's ``advantage`` over it with ``_low``, ``_high``
        and ``_q_value``; ``beats_every_control``; ``cluster`` (number, missing for noise), ``cluster_label``;
        ``validation_iou``; ``unscored`` (metrics without a value, with reasons). Missing numbers are NaN.
    """
    scores: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for score in results.scores.to_dict("records"):
        scores.setdefault((score["unit"], score["explainer"]), []).append(score)
    rows = [
        _row(record, name, scores.get((record["unit"], record["explainer"]), []), results.clusters)
        for record, name in zip(results.explanations, unit_names(results.explanations), strict=True)
    ]
    table = pd.DataFrame(rows).sort_values(["layer", "head", "explainer"], kind="stable")
    table["cluster"] = table["cluster"].astype("Int64")
    return table.reset_index(drop=True)


def _row(
    record: Mapping[str, Any],
    name: str,
    scores: Sequence[Mapping[str, Any]],
    clusters: Mapping[str, Any],
) -> dict[str, Any]:
    own = {score["metric"]: score for score in scores if score["control"] == OWN}
    main = own.get(MAIN_METRIC, {"status": UNSCORED, "reason": "no score"})
    scored = main["status"] == "scored"
    row: dict[str, Any] = {
        **{key: record[key] for key in ("unit", "layer", "head", "explainer")},
        "kind": record.get("kind", ""),
        "text": record["text"],
        "status": "scored" if scored else UNSCORED,
        "reason": "" if scored else main["reason"],
        "documents": int(main["documents"]) if scored else 0,
    }
    for metric in METRICS:
        parts = ("value", "low", "high") if metric in WITH_INTERVAL else ("value",)
        for part in parts:
            column = metric if part == "value" else f"{metric}_{part}"
            row[column] = own[metric][part] if metric in own else np.nan
    row |= _against_controls([score for score in scores if score["metric"] == CONTROL_METRIC])
    row |= _cluster_of(name, clusters)
    known = record.get("validation_iou")
    row["validation_iou"] = np.nan if known is None else known
    row["unscored"] = "; ".join(
        f"{metric}: {score['reason']}"
        for metric, score in own.items()
        if score["status"] == UNSCORED
    )
    return row


def _against_controls(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [
        s for s in scores if is_same_model_control(s["control"]) and not isnan(s["difference"])
    ]
    names = ("advantage", "advantage_low", "advantage_high", "advantage_q_value")
    if not known:
        empty = dict.fromkeys(("best_control_iou_without_sink", *names), np.nan)
        return {"best_control": "", **empty, "beats_every_control": None}
    best = min(known, key=lambda s: (-s["value"], s["control"]))
    values = (best[key] for key in ("difference", "difference_low", "difference_high", "q_value"))
    return {
        "best_control": best["control"],
        "best_control_iou_without_sink": best["value"],
        **dict(zip(names, values, strict=True)),
        "beats_every_control": all(bool(s["beats_control"]) for s in known),
    }


def _cluster_of(name: str, clusters: Mapping[str, Any]) -> dict[str, Any]:
    for cluster in clusters["clusters"]:
        if name in cluster["units"]:
            return {"cluster": cluster["id"], "cluster_label": cluster["label"]}
    return {"cluster": None, "cluster_label": ""}


def cluster_sizes(results: HeadResults, table: pd.DataFrame) -> list[tuple[str, int, float]]:
    """Return (label, heads, mean IoU) of every cluster."""
    return [
        (
            f"{cluster['id']}: {cluster['label']}",
            cluster["size"],
            float(table.loc[table["cluster"] == cluster["id"], MAIN_METRIC].mean()),
        )
        for cluster in results.clusters["clusters"]
    ]


def unscored_rows(results: HeadResults) -> list[tuple[str, str, int, str]]:
    """Return (metric, reason, number of heads, heads) for every reason why a score is missing."""
    missing = results.scores[
        (results.scores["control"] == OWN) & (results.scores["status"] == UNSCORED)
    ]
    several = len(results.explainers) > 1
    order = {metric: i for i, metric in enumerate(METRICS)}
    rows = []
    for (explainer, metric, reason), group in missing.groupby(["explainer", "metric", "reason"]):
        words = METRICS.get(metric, metric) + (f" ({explainer})" if several else "")
        place = (order.get(metric, len(order)), words, reason)
        rows.append((place, (words, reason, len(group), ", ".join(group["unit"]))))
    return [row for _, row in sorted(rows)]


def best_median_worst(table: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Return the rows of the best, the median and the worst explained head, fewer if there are fewer heads."""
    scored = table[table[MAIN_METRIC].notna()]
    scored = scored.sort_values([MAIN_METRIC, "layer", "head"], ascending=[False, True, True])
    if scored.empty:
        return []
    places = {"best": 0, "median": (len(scored) - 1) // 2, "worst": len(scored) - 1}
    chosen: dict[int, str] = {}
    for name, place in places.items():
        chosen.setdefault(place, name)
    return [(name, scored.iloc[place]) for place, name in chosen.items()]


def at_share(headline: Mapping[str, Any], order: str, share: float = 0.25) -> dict[str, Any] | None:
    """Return the row of the replacement curve whose share is nearest to ``share``, or None if there is none."""
    rows = [row for row in headline["replacement"] if row["order"] == order]
    return min(rows, key=lambda row: (abs(row["share"] - share), row["share"]), default=None)
