"""From a judge's answers to scores with intervals, gains over what costs nothing, and controls.

Documents are resampled, the same ones for the judge, the program, the look-up and the control, so that gains and
differences have intervals of their own. p-values against the control are adjusted over units (Benjamini and Hochberg
1995), apart for each explainer, scorer and metric; planted units do not count among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.io import rng_for
from mechatlas.score.judge.columns import PLANTED
from mechatlas.score.judge.items import LEAST_GROUPS, RANDOM_PLACE
from mechatlas.score.judge.judging import UNSCORED
from mechatlas.score.judge.metrics import (
    JUDGE,
    LOOKUP,
    PROGRAM,
    RANDOM_ONLY,
    judge_interval,
    metric_names,
    prepare,
)
from mechatlas.stats.bootstrap import adjust_fdr, document_weights, interval, sign_p_value

SUBJECT = ["unit", "explainer", "control", "scorer"]
COLUMNS = (
    *("unit", "layer", "head", "explainer", "scorer", "metric", "control", "value", "low", "high"),
    *("program", "gain_over_program", "gain_over_program_low", "gain_over_program_high"),
    *("lookup", "gain_over_lookup", "gain_over_lookup_low", "gain_over_lookup_high"),
    *("difference", "difference_low", "difference_high", "p_value", "q_value", "beats_control"),
    *("groups", "documents", "items", "unscored_items", "failure_rate", "canary_failures"),
    *("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "price"),
    *("status", "reason"),
)
SPENT = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "price")


@dataclass(frozen=True)
class JudgeSummarySettings:
    """Settings of the summary (config: score).

    ``active_attention`` is the predicted attention from which a program or look-up says yes.
    """

    bootstrap: int
    confidence: float
    fdr: float
    active_attention: float
    seed: int


@dataclass
class Scored:
    """Replicates of one metric by predictor, or why there are none."""

    replicates: Mapping[str, np.ndarray]
    reason: str = ""
    groups: int = 0
    documents: int = 0
    doubted: np.ndarray | None = None


Key = tuple[str, str, str, str, str]  # unit, explainer, control, scorer, metric


def summarise_judgements(
    items: pd.DataFrame,
    judgements: pd.DataFrame,
    usage: pd.DataFrame,
    settings: JudgeSummarySettings,
) -> pd.DataFrame:
    """Score every explanation by every scorer.

    Parameters
    ----------
    items : data frame
        items.parquet.
    judgements : data frame
        judgements.parquet.
    usage : data frame
        judge_usage.parquet.
    settings : JudgeSummarySettings

    Returns
    -------
    data frame
        Columns `COLUMNS`. Rows with control "none" hold the explanation's own score, the others the control's and the
        explanation's advantage over it. What an explanation cost stands in each row of its scorer. A scorer that has no
        items for a unit has one row with an empty metric and the reason.
    """
    by_unit = {key: rows for key, rows in items.groupby(["unit", "scorer"], sort=False)}
    table: dict[Key, Scored] = {}
    for (unit, scorer), group in judgements.groupby(["unit", "scorer"], sort=False):
        _add(table, str(unit), str(scorer), by_unit[(unit, scorer)], group, settings)
    counts = _counts(judgements, usage)
    numbers = items.drop_duplicates("unit").set_index("unit")[["layer", "head"]]
    rows = [_row(key, table, settings) for key in table]
    rows += _without_items(items, judgements)
    frame = pd.DataFrame(rows, columns=[c for c in COLUMNS if c not in (*counts, "layer", "head")])
    frame = frame.merge(counts.reset_index(), on=SUBJECT, how="left")
    frame = frame.merge(numbers, left_on="unit", right_index=True, how="left")
    return _adjusted(frame, settings.fdr)[list(COLUMNS)]


def _add(
    table: dict[Key, Scored],
    unit: str,
    scorer: str,
    items: pd.DataFrame,
    judgements: pd.DataFrame,
    settings: JudgeSummarySettings,
) -> None:
    """Add all metrics of one unit and scorer, for all explanations and controls."""
    items = items.assign(doc=items["doc"].astype(str))
    documents = {doc: i for i, doc in enumerate(sorted(items["doc"].unique()))}
    rng = rng_for(settings.seed, "bootstrap", "judge", unit, scorer)
    weights = document_weights(len(documents), settings.bootstrap, rng)
    more_weights = document_weights(len(documents) + 2, settings.bootstrap, rng)
    for (explainer, control), rows in judgements.groupby(["explainer", "control"], sort=False):
        judged = items.merge(rows[["item", JUDGE]], on="item", how="left")
        why = _most_frequent(rows.loc[rows["status"] == UNSCORED, "reason"])
        for metric in metric_names(scorer, items["role"]):
            ready = prepare(scorer, metric, judged, documents, settings.active_attention)
            wanted = _groups(scorer, metric, items)
            scored = Scored({}, groups=ready.groups, documents=ready.documents)
            if ready.groups < min(LEAST_GROUPS, wanted):
                reason = f"only {ready.groups} of {wanted} groups of items are answered"
                scored.reason = f"{reason}: {why}" if why else reason
                if not ready.groups and why:
                    scored.reason = why
            else:
                scored.replicates = ready.replicates(weights)
                scored.doubted = ready.doubted(more_weights)
                if JUDGE not in scored.replicates:
                    scored.reason = "all answers or all true values are the same"
            table[(unit, str(explainer), str(control), scorer, metric)] = scored


def _groups(scorer: str, metric: str, items: pd.DataFrame) -> int:
    if scorer == "pair_auc":
        items = items[items["role"] == metric.removeprefix("auc_")]
    elif metric == "top1":
        items = items[items["label"]]
    elif metric == RANDOM_ONLY:
        items = items[items["role"] == RANDOM_PLACE]
    return items["group"].nunique()


def _most_frequent(reasons: pd.Series) -> str:
    reasons = reasons[reasons != ""]
    return str(reasons.mode().iloc[0]) if len(reasons) else ""


def _row(key: Key, table: Mapping[Key, Scored], settings: JudgeSummarySettings) -> dict[str, Any]:
    unit, explainer, control, scorer, metric = key
    scored = table[key]
    row: dict[str, Any] = {
        **{"unit": unit, "explainer": explainer, "control": control, "scorer": scorer},
        **{"metric": metric, "groups": scored.groups, "documents": scored.documents},
        **{"status": UNSCORED if scored.reason else "scored", "reason": scored.reason},
    }
    if scored.reason:
        return row
    own = scored.replicates[JUDGE]
    row["value"] = own[0]
    row["low"], row["high"] = judge_interval(own, scored.doubted, settings.confidence)
    for name, column in (("program", PROGRAM), ("lookup", LOOKUP)):
        if column in scored.replicates:
            row[name] = scored.replicates[column][0]
            row |= _difference(f"gain_over_{name}", own - scored.replicates[column], settings)
    mine = table.get((unit, explainer, "none", scorer, metric))
    if control != "none" and mine is not None and not mine.reason:
        difference = mine.replicates[JUDGE] - own
        row |= _difference("difference", difference, settings)
        row["p_value"] = sign_p_value(difference)
    return row


def _difference(
    name: str, replicates: np.ndarray, settings: JudgeSummarySettings
) -> dict[str, float]:
    low, high = interval(replicates, settings.confidence)
    return {name: replicates[0], f"{name}_low": low, f"{name}_high": high}


def _counts(judgements: pd.DataFrame, usage: pd.DataFrame) -> pd.DataFrame:
    """Items, failures and spend by subject."""
    unscored = judgements["status"] == UNSCORED
    counts = judgements.assign(unscored=unscored).groupby(SUBJECT)["unscored"]
    table = counts.agg(items="size", unscored_items="sum")
    table["failure_rate"] = table["unscored_items"] / table["items"]
    return table.join(usage.set_index(SUBJECT)[["canary_failures", *SPENT]])


def _without_items(items: pd.DataFrame, judgements: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for units on which a scorer cannot be used, for each explainer that has something to say about the unit."""
    explainers = judgements[["unit", "explainer"]].drop_duplicates()
    missing = items[items["item"] == ""].merge(explainers, on="unit")
    return [
        {
            **{"unit": row.unit, "explainer": row.explainer, "control": "none"},
            **{"scorer": row.scorer, "metric": "", "status": UNSCORED, "reason": row.reason},
        }
        for row in missing.itertuples()
    ]


def _adjusted(frame: pd.DataFrame, fdr: float) -> pd.DataFrame:
    frame["q_value"] = np.nan
    tested = frame[(frame["control"] != "none") & (frame["explainer"] != PLANTED)]
    for _, group in tested.groupby(["explainer", "scorer", "metric", "control"]):
        frame.loc[group.index, "q_value"] = adjust_fdr(group["p_value"].to_numpy(np.float64))
    significant = (frame["q_value"] <= fdr) & (frame["difference"] > 0)
    frame["beats_control"] = significant.where(frame["q_value"].notna(), None)
    numbers = [c for c in COLUMNS if c.startswith(("gain_", "difference", "p_value")) or c in SPENT]
    numbers += ["value", "low", "high", "program", "lookup", "failure_rate"]
    frame = frame.astype(dict.fromkeys(numbers, np.float64))
    return frame.sort_values(
        ["layer", "head", "unit", "explainer", "scorer", "metric", "control"], kind="stable"
    ).reset_index(drop=True)
