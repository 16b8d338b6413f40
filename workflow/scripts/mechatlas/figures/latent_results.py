"""The result files of the latents of one dictionary, joined into what reports show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.figures.html import number, with_interval
from mechatlas.figures.latents import in_order, variant_words
from mechatlas.figures.markdown import markdown_table
from mechatlas.figures.words import percent
from mechatlas.score.latents.names import OWN
from mechatlas.score.latents.overall import MAIN_METRIC, failing_controls

#: Metrics in the order in which they are shown, with their words.
METRICS: dict[str, str] = {
    "correlation": "correlation, all tokens",
    "correlation_top_and_random": "correlation, top and random",
    "variance_explained": "variance explained (calibrated)",
    "average_precision": "average precision",
    "auc": "AUC, all tokens",
    "auc_negative_similar": "AUC, like direction",
    "auc_negative_coactive": "AUC, co-active",
    "precision": "precision",
    "recall": "recall",
    "loss_recovered": "loss recovered",
    "steering_auc": "steering AUC",
}
FLAGS = {"dead": "dead", "dense": "dense", "single_token": "single token"}


def latent_table(
    explanations: Sequence[Mapping[str, Any]], scores: pd.DataFrame, statistics: pd.DataFrame
) -> pd.DataFrame:
    """Join explanations, scores and statistics: one row per explanation, by explainer the most important latent first.

    Returns
    -------
    data frame
        ``unit``, ``layer``, ``latent``, ``explainer``, ``kind``, ``text``, ``importance``, ``importance_share`` (of the
        layer), ``firing_rate``, ``mean_activation``, ``max_activation``, ``flags`` (all over train tokens); each metric
        of `METRICS`, the main one with ``_low`` and ``_high``; ``best_control`` and ``advantage`` over it with
        ``_low``, ``_high``, ``_q_value``; ``beats_every_control``; ``status``, ``reason``. Missing numbers are NaN.
    """
    train = statistics[statistics["split"] == "train"]
    totals = train.groupby("layer")["importance"].sum()
    known = train.set_index(["layer", "latent"])
    by_unit = dict(iter(scores.groupby(["unit", "explainer"])))
    rows = []
    for record in explanations:
        key = (record["layer"], record["latent"])
        mine = by_unit.get((record["unit"], record["explainer"]), scores.head(0))
        rows.append(
            {
                **{name: record[name] for name in ("unit", "layer", "latent", "explainer")},
                **{"kind": record.get("kind", ""), "text": record["text"]},
                **_statistics(known.loc[key], totals[record["layer"]]),
                **_scores(mine, record),
            }
        )
    table = pd.DataFrame(rows)
    order = ["explainer", "layer", "importance", "latent"]
    table = table.sort_values(order, ascending=[True, True, False, True], kind="stable")
    return table.reset_index(drop=True)


def _statistics(row: pd.Series, total: float) -> dict[str, Any]:
    return {
        "importance": float(row["importance"]),
        "importance_share": float(row["importance"]) / max(float(total), 1e-300),
        **{n: float(row[n]) for n in ("firing_rate", "mean_activation", "max_activation")},
        "flags": ", ".join(words for flag, words in FLAGS.items() if row[flag]),
    }


def _scores(mine: pd.DataFrame, record: Mapping[str, Any]) -> dict[str, Any]:
    own = mine[mine["control"] == OWN].set_index("metric")
    row: dict[str, Any] = {metric: own["value"].get(metric, np.nan) for metric in METRICS}
    row |= {f"{MAIN_METRIC}_{end}": own[end].get(MAIN_METRIC, np.nan) for end in ("low", "high")}
    rows = failing_controls(mine[(mine["metric"] == MAIN_METRIC) & mine["difference"].notna()])
    rows = rows.sort_values(["value", "control"], ascending=[False, True])
    names = ("advantage", "advantage_low", "advantage_high", "advantage_q_value")
    if rows.empty:
        row |= {"best_control": "", **dict.fromkeys(names, np.nan), "beats_every_control": None}
    else:
        best = rows.iloc[0]
        columns = ["difference", "difference_low", "difference_high", "q_value"]
        row |= {"best_control": best["control"], **dict(zip(names, best[columns], strict=True))}
        row["beats_every_control"] = bool(rows["beats_control"].astype(bool).all())
    scored = MAIN_METRIC in own.index and own.loc[MAIN_METRIC, "status"] == "scored"
    reason = "" if scored else str(own["reason"].get(MAIN_METRIC, record.get("reason", "")))
    return row | {"status": "scored" if scored else "unscored", "reason": reason}


def table_rows(table: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table of latents."""
    columns = [
        *("latent", "explainer", "explanation", "share of layer", "firing rate", "flags"),
        *("correlation", "advantage", "closest control", "q", "AUC, like direction"),
        *("loss recovered", "steering AUC"),
    ]
    if table["explainer"].nunique() < 2:
        columns.remove("explainer")
    rows = []
    for row in table.itertuples():
        cells = {
            "latent": row.unit,
            "explainer": row.explainer,
            "explanation": row.text or f"not explained: {row.reason}",
            "share of layer": percent(row.importance_share, 1),
            "firing rate": percent(row.firing_rate, 2),
            "flags": row.flags or number(None),
            "correlation": with_interval(
                row.correlation, row.correlation_low, row.correlation_high
            ),
            "advantage": with_interval(row.advantage, row.advantage_low, row.advantage_high),
            "closest control": variant_words(row.best_control)
            if row.best_control
            else number(None),
            "q": number(row.advantage_q_value, 3),
            "AUC, like direction": number(row.auc_negative_similar),
            "loss recovered": number(row.loss_recovered),
            "steering AUC": number(row.steering_auc),
        }
        rows.append([cells[name] for name in columns])
    return columns, rows


def mean_rows(headline: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of mean scores of one explainer."""
    means = headline["means"]
    controls = in_order(name for item in means.values() for name in item["controls"])
    columns = ["score", "latents", "explanation", *map(variant_words, controls)]
    rows = []
    for metric, words in METRICS.items():
        if metric in means:
            item = means[metric]
            rows.append(
                [
                    words + (" (median)" if item["median"] else ""),
                    str(item["latents"]),
                    with_interval(item["value"], item["low"], item["high"]),
                    *(number(item["controls"].get(name)) for name in controls),
                ]
            )
    return columns, rows


def headline_items(headline: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the headline numbers of one explainer as (value, what it is, note)."""
    means, beats = headline["means"], headline["beats"]
    items = []
    if MAIN_METRIC in means:
        main = means[MAIN_METRIC]
        controls = ", ".join(
            f"{variant_words(n)} {number(main['controls'][n])}" for n in in_order(main["controls"])
        )
        note = f"interval over latents [{number(main['low'])}, {number(main['high'])}]; {controls}"
        words = f"mean correlation of {headline['scored']} of {headline['latents']} latents"
        items.append((number(main["value"]), words, note))
    share = percent(beats["count"] / beats["of"]) if beats["of"] else number(None)
    note = f"{beats['count']} of {beats['of']}, by correlation on all test tokens"
    items.append((share, "of latents beat every control", note))
    for metric, words, why in (
        (
            "loss_recovered",
            "of the ablation's loss recovered",
            "latents whose ablation does harm; median",
        ),
        (
            "steering_auc",
            "steering AUC",
            "does steering promote what follows where the text says; 0.5 is chance",
        ),
    ):
        if metric in means:
            item = means[metric]
            value = percent(item["value"]) if metric == "loss_recovered" else number(item["value"])
            items.append((value, words, f"{item['latents']} latents: {why}"))
    return items


def layer_rows(headline: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of layers."""
    columns = [
        *("layer", "latents", "dead", "dense", "single token", "active per token", "train tokens"),
    ]
    rows = [
        [
            *(str(row[name]) for name in ("layer", "latents", "dead", "dense", "single_token")),
            *(number(row["active_per_token"], 1), str(row["tokens"])),
        ]
        for row in headline["layers"]
    ]
    return columns, rows


def unscored_rows(scores: pd.DataFrame) -> list[tuple[str, str, int, str]]:
    """Return (metric, reason, number of latents, latents) for every reason why a score is missing."""
    missing = scores[(scores["control"] == OWN) & (scores["status"] == "unscored")]
    # Counts differ from latent to latent; the kind of reason is the same.
    kind = missing["reason"].str.replace(r"\d+", "N", regex=True)
    order = {metric: i for i, metric in enumerate(METRICS)}
    rows = []
    for (metric, reason), group in missing.groupby([missing["metric"], kind]):
        shown = group["reason"].iloc[0] if len(group) == 1 else reason
        units = sorted(group["unit"])
        names = ", ".join(units[:20]) + (f" and {len(units) - 20} more" if len(units) > 20 else "")
        row = (METRICS.get(metric, metric), shown, len(group), names)
        rows.append((order.get(metric, 99), row))
    return [row for _, row in sorted(rows)]


def latents_report(
    name: str,
    source: str,
    dictionary: str,
    table: pd.DataFrame,
    headline: Mapping[str, Any],
    scores: pd.DataFrame,
    judged: str,
) -> str:
    """Return the findings as Markdown."""
    parts = [f"# Latents of dictionary {dictionary}, {name} on {source}\n"]
    for explainer, numbers in headline["explainers"].items():
        parts.append(f"## Explainer {explainer}\n")
        parts += [
            f"- **{value}** {words} ({note})" for value, words, note in headline_items(numbers)
        ]
        parts += ["", markdown_table(*mean_rows(numbers))]
    parts += ["## Layers\n", markdown_table(*layer_rows(headline))]
    columns, rows = table_rows(table)
    parts += ["## Latents, the most important of each layer first\n"]
    parts.append(markdown_table(columns, [[str(cell) for cell in row] for row in rows]))
    missing = [list(map(str, row)) for row in unscored_rows(scores)]
    if missing:
        parts += ["## Without a score\n"]
        parts.append(markdown_table(["score", "reason", "latents", "units"], missing))
    return "\n".join([*parts, judged]) + "\n"
