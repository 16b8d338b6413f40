"""A judge's scores as columns, a row for each unit and explainer, for tables in which everything is joined."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

#: Beginnings of the names of the metrics that need no threshold, one or more of each scorer that asks for grades.
HEADLINE = ("auc", "correlation", "accuracy")
PREFIX = "judge."
#: The explainer of units that were made up, as ceiling and floor of a judge (`mechatlas.score.judge.planted`).
PLANTED = "planted"
KEY = ["layer", "head", "explainer"]
#: Columns of judge_scores.parquet, and what follows the name of the score.
OWN = {"value": "", "low": "_low", "high": "_high", "gain_over_lookup": "_over_lookup"}


def headline(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of units that are not planted with a metric that needs no threshold."""
    return scores[(scores["layer"] >= 0) & scores["metric"].str.startswith(HEADLINE)]


def judge_columns(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of explanations side by side.

    Parameters
    ----------
    scores : data frame
        judge_scores.parquet.

    Returns
    -------
    data frame
        By `KEY` (``head`` is the number of a latent, too). For each scorer and metric of `HEADLINE`, named
        ``judge.{scorer}.{metric}``: the value, with ``_low``, ``_high``, ``_over_lookup`` (gain over the token look-up)
        and ``_beats_other`` (boolean: over another unit's text). Missing where it is unscored.
    """
    rows = headline(scores)
    found = rows[KEY].drop_duplicates().set_index(KEY)
    for scorer, metric in score_names(scores):
        name = f"{PREFIX}{scorer}.{metric}"
        mine = rows[(rows["scorer"] == scorer) & (rows["metric"] == metric)]
        own = mine[mine["control"] == "none"].set_index(KEY)[list(OWN)]
        beats = mine[mine["control"] != "none"].set_index(KEY)["beats_control"]
        found = found.join(own.set_axis([name + end for end in OWN.values()], axis=1))
        found[f"{name}_beats_other"] = beats.astype(object).astype("boolean")
    return found


def score_names(scores: pd.DataFrame) -> Sequence[tuple[str, str]]:
    """Return the (scorer, metric) pairs of `headline`, in the order of their names."""
    return sorted(set(headline(scores)[["scorer", "metric"]].itertuples(index=False, name=None)))
