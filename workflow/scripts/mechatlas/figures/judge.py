"""Scores that a judging language model gave: a figure and the rows of tables, from judge_scores.parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechatlas.figures.html import number, with_interval
from mechatlas.figures.judge_scores import METRICS, ceiling_and_floor, of_score, shown_metrics
from mechatlas.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, styled
from mechatlas.figures.words import percent
from mechatlas.score.judge.columns import PLANTED
from mechatlas.score.judge.metrics import CHANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPLAINER_COLOURS = (BLUE, ORANGE, GREEN)
#: Up to this many units an axis names them.
NAMED = 80
#: Columns of `judge_unit_rows`.
JUDGE_UNIT_COLUMNS = (
    *("unit", "explainer", "score", "gain over program", "gain over look-up", "q (other text)"),
    *("unanswered", "why unscored"),
)
SPENT = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "price")


@styled
def judge_figure(scores: pd.DataFrame, scorer: str, metric: str) -> Figure:
    """Draw every unit's score with its interval, the program and the look-up on the same items, ceiling and floor.

    Parameters
    ----------
    scores : data frame
        judge_scores.parquet.
    scorer, metric : str
        One of `METRICS`.
    """
    rows = of_score(scores, scorer, metric)
    own = rows[(rows["control"] == "none") & (rows["explainer"] != PLANTED) & rows["value"].notna()]
    best = own.groupby("unit")["value"].max().sort_values(ascending=False, kind="stable")
    place = {unit: i for i, unit in enumerate(best.index)}
    figure, axes = new_figure(max(6.4, min(14.0, 1.2 + 0.24 * len(place))), 3.9)
    _lines(axes, scores, scorer, metric)
    explainers = list(dict.fromkeys(own["explainer"]))
    for number_, explainer in enumerate(explainers):
        points = own[own["explainer"] == explainer]
        shift = 0.18 * (number_ - (len(explainers) - 1) / 2)
        at = points["unit"].map(place).to_numpy(float) + shift
        colour = EXPLAINER_COLOURS[number_ % len(EXPLAINER_COLOURS)]
        axes.vlines(at, points["low"], points["high"], color=colour, linewidth=1.6)
        axes.plot(
            at, points["value"], "o", color=colour, markersize=4.4, label=f"{explainer}, judged"
        )
    for column, marker, colour, words in (
        ("program", "_", BLACK, "program, without a judge"),
        ("lookup", "x", PURPLE, "token look-up"),
    ):
        known = own[own[column].notna()].drop_duplicates("unit")
        if len(known):
            at = known["unit"].map(place)
            axes.plot(at, known[column], marker, color=colour, markersize=6, label=words)
    _name_units(axes, list(place))
    axes.set(ylabel=METRICS[(scorer, metric)])
    if own.empty:
        axes.text(0.5, 0.5, "no unit is scored", transform=axes.transAxes, ha="center")
    else:
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.3)
    return figure


def _lines(axes: Axes, scores: pd.DataFrame, scorer: str, metric: str) -> None:
    ceiling, floor = ceiling_and_floor(scores, scorer, metric)
    if np.isfinite(ceiling):
        axes.axhline(ceiling, color=GREEN, linewidth=1.2, linestyle="--", label="ceiling (planted)")
    if np.isfinite(floor):
        axes.axhline(
            floor, color=GREY, linewidth=1.2, linestyle="--", label="floor (planted, swapped)"
        )
    chance = CHANCE.get("auc" if metric.startswith("auc") else metric)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=0.8, linestyle=":", label="chance")


def _name_units(axes: Axes, units: list[str]) -> None:
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.8, max(len(units), 1) - 0.2)
    if len(units) <= NAMED:
        axes.set_xticks(range(len(units)), units, rotation=90, fontsize=7)
    else:
        axes.set(xticks=[], xlabel=f"{len(units)} units, best first")


def judge_rows(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of mean scores, one row per score and explainer."""
    columns = [
        *("score", "explainer", "units", "mean", "ceiling", "floor", "program", "look-up"),
        *("gain over program", "gain over look-up", "other unit's text", "beat it", "unanswered"),
    ]
    units = scores.groupby("explainer")["unit"].nunique()
    rows = []
    for scorer, metric in shown_metrics(scores):
        ceiling, floor = ceiling_and_floor(scores, scorer, metric)
        group = of_score(scores, scorer, metric)
        for explainer in dict.fromkeys(group.loc[group["explainer"] != PLANTED, "explainer"]):
            mine = group[group["explainer"] == explainer]
            own, other = mine[mine["control"] == "none"], mine[mine["control"] == "swapped"]
            rows.append(
                [
                    *(METRICS[(scorer, metric)], explainer),
                    f"{int(own['value'].notna().sum())} of {units[explainer]}",
                    *(_mean(own["value"]), number(ceiling), number(floor)),
                    *(_mean(own["program"]), _mean(own["lookup"])),
                    *(_gain(own, "program"), _gain(own, "lookup"), _mean(other["value"])),
                    *(_count(other["beats_control"]), _failures(mine)),
                ]
            )
    return columns, rows


def _mean(values: pd.Series) -> str:
    return number(float(values.mean())) if values.notna().any() else number(None)


def _gain(own: pd.DataFrame, name: str) -> str:
    """Mean gain, and of how many units the gain's interval lies above zero."""
    gains = own[own[f"gain_over_{name}"].notna()]
    if gains.empty:
        return number(None)
    above = int((gains[f"gain_over_{name}_low"] > 0).sum())
    mean = gains[f"gain_over_{name}"].mean()
    return f"{'+' if mean > 0 else ''}{number(float(mean))} (above 0: {above} of {len(gains)})"


def _count(beats: pd.Series) -> str:
    known = beats[beats.notna()].astype(bool)
    return f"{int(known.sum())} of {len(known)}" if len(known) else number(None)


def _failures(rows: pd.DataFrame) -> str:
    items = rows["items"].sum()
    return percent(float(rows["unscored_items"].sum() / items), 1) if items else number(None)


def judge_unit_rows(scores: pd.DataFrame, scorer: str, metric: str) -> list[list[str]]:
    """Return (unit, explainer, score, gain over program, gain over look-up, q of the control, unanswered, reason)."""
    group = of_score(scores, scorer, metric)
    q_values = group[group["control"] == "swapped"].set_index(["unit", "explainer"])["q_value"]
    rows = []
    for row in group[group["control"] == "none"].itertuples():
        q_value = q_values.get((row.unit, row.explainer), np.nan)
        gains = (
            with_interval(
                *(getattr(row, f"gain_over_{name}{part}") for part in ("", "_low", "_high"))
            )
            for name in ("program", "lookup")
        )
        score = (
            with_interval(row.value, row.low, row.high) if row.status == "scored" else row.status
        )
        unanswered = percent(row.failure_rate) if np.isfinite(row.failure_rate) else number(None)
        tail = (number(float(q_value), 3), unanswered, row.reason)
        rows.append([row.unit, row.explainer, score, *gains, *tail])
    return rows


def unscored_judge_rows(scores: pd.DataFrame) -> list[tuple[str, str, str, int, str]]:
    """Return (score, explainer, reason, number of units, units) for every reason why a score is missing."""
    missing = scores[(scores["control"] == "none") & (scores["status"] != "scored")]
    rows = []
    keys = ["scorer", "metric", "explainer", "reason"]
    for (scorer, metric, explainer, reason), group in missing.groupby(keys, sort=False):
        words = METRICS.get((scorer, metric), scorer)
        rows.append((words, explainer, reason, len(group), ", ".join(group["unit"])))
    return sorted(rows)


def spend_rows(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of what judging took: by explainer and scorer, controls included, and in all."""
    subject = ["unit", "explainer", "control", "scorer"]
    spent = scores[scores["requests"].notna()].drop_duplicates(subject)
    columns = ["explainer", "score", "explanations", "requests", "prompt tokens", "of these cached"]
    columns += ["answer tokens", "price", "prompt tokens per explanation"]
    rows = [
        _spent([explainer, scorer.replace("_", " ")], group)
        for (explainer, scorer), group in spent.groupby(["explainer", "scorer"], sort=True)
    ]
    if len(rows) > 1:
        rows.append(_spent(["all", ""], spent))
    return columns, rows


def _spent(names: list[str], group: pd.DataFrame) -> list[str]:
    totals: dict[str, Any] = {name: float(group[name].sum()) for name in SPENT}
    price = "unknown" if group["price"].isna().any() else number(totals["price"], 4)
    asked = len(group[["unit", "explainer", "control"]].drop_duplicates())
    counts = [f"{totals[name]:,.0f}" for name in SPENT[:-1]]
    return [*names, str(asked), *counts, price, f"{totals['prompt_tokens'] / max(asked, 1):,.0f}"]
