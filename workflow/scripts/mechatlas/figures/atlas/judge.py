"""Data of what a judge said of explanations, for the map and the pages of heads and latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechatlas.figures.atlas.data import interval, number, numbers, truth
from mechatlas.figures.judge_scores import METRICS, ceiling_and_floor
from mechatlas.io import read_table
from mechatlas.score.judge.columns import PREFIX, judge_columns, score_names

SCORES = "judge_scores.parquet"


def judge_names(table: pd.DataFrame) -> list[str]:
    """Return the names of the judge's scores among the columns of a table, ``{scorer}.{metric}``."""
    names = [name.removeprefix(PREFIX) for name in table.columns if name.startswith(PREFIX)]
    return [name for name in names if f"{name}_low" in names]


def judged_as(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return ``{"judge": {name: [value, low, high]}}`` of a row of such a table, nothing without a judge."""
    found = {name: interval(row, f"{PREFIX}{name}") for name in names}
    return {"judge": found} if found else {}


def judge_marks(place: Path) -> list[dict[str, Any]]:
    """Return the scores that a map can show: name, words, chance, and what planted units get.

    Parameters
    ----------
    place : Path
        Folder of judge_scores.parquet.
    """
    # Only here, as it takes what an atlas without a judge can do without.
    from mechatlas.score.judge.metrics import CHANCE

    scores = read_table(place / SCORES)
    names = set(score_names(scores))
    return [
        {
            **{"name": f"{scorer}.{metric}", "label": METRICS[scorer, metric]},
            "chance": CHANCE["auc" if metric.startswith("auc") else metric],
            "planted": numbers(ceiling_and_floor(scores, scorer, metric)),
        }
        for scorer, metric in METRICS
        if (scorer, metric) in names
    ]


def judge_rows(place: Path) -> dict[tuple[int, int], dict[str, list[dict[str, Any]]]]:
    """Return layer and number of a unit -> explainer -> a row for each score.

    Each has ``label``, ``own`` (``[value, low, high]``, or the reason why there is none) and what it is compared with:
    ``other`` (another unit's text), ``beats`` (it), ``planted`` (right text, wrong text), ``program``, ``lookup``;
    ``missing`` is the share of items without an answer.
    """
    scores = read_table(place / SCORES)
    order = {key: at for at, key in enumerate(METRICS)}
    planted = {key: numbers(ceiling_and_floor(scores, *key)) for key in METRICS}
    real = scores[scores["layer"] >= 0]
    names = ["layer", "head", "explainer", "scorer", "metric"]
    others = real[real["control"] != "none"].set_index(names)[["value", "beats_control"]]
    beside = {key: value for key, *value in others.itertuples(name=None)}
    found: dict[tuple[int, int], dict[str, list[dict[str, Any]]]] = {}
    own = real[real["control"] == "none"]
    places = pd.Series(
        [order.get(key, len(order)) for key in zip(own["scorer"], own["metric"], strict=True)]
    )
    for row in own.iloc[places.argsort(kind="stable")].to_dict("records"):
        key = (row["scorer"], row["metric"])
        other, beats = beside.get(tuple(row[name] for name in names), (None, None))
        scored = row["status"] == "scored"
        entry = {
            "label": METRICS.get(key, row["scorer"].replace("_", " ")),
            "own": numbers(row[name] for name in ("value", "low", "high")) if scored else row["reason"],
            **{"other": number(other), "beats": truth(beats), "planted": planted.get(key, [None, None])},
            **{"program": number(row["program"]), "lookup": number(row["lookup"])},
            "missing": number(row["failure_rate"]),
        }  # fmt: skip
        unit = found.setdefault((int(row["layer"]), int(row["head"])), {})
        unit.setdefault(row["explainer"], []).append(entry)
    return found


def add_judge(
    place: Path,
    summary: pd.DataFrame,
    index: dict[str, Any],
    details: Mapping[int, Mapping[str, dict[str, Any]]],
) -> None:
    """Add what a judge said to the index and the pages of a dictionary's latents (see `write_latents`)."""
    columns = judge_columns(read_table(place / SCORES))
    names, values = judge_names(columns), columns.to_dict("index")
    rows = judge_rows(place)
    index["judges"] = judge_marks(place)
    for entry, row in zip(index["words"], summary.to_dict("records"), strict=True):
        unit = (row["layer"], row["latent"])
        entry |= judged_as(values.get((*unit, row["explainer"]), {}), names)
        details[row["layer"]][row["unit"]]["judge"] = rows.get(unit, {})
