"""Rows of the tables of a circuits page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechatlas.figures.circuits.edges import method_style
from mechatlas.figures.circuits.nodes import PROFILES
from mechatlas.figures.circuits.results import CircuitResults, TaskResults
from mechatlas.figures.html import number, probability, with_interval

Rows = tuple[list[str], list[list[str]]]

SUMMARY = [
    "task", "prompts found on / tested on", "heads", "MLPs", "held-out score, % of the model",
    "random, same heads per layer: mean, best, p", "complete within", "edges", "held-out faithfulness of edges",
]  # fmt: skip


def summary_rows(results: CircuitResults) -> Rows:
    """Return one row a task: sizes of its circuits, how faithful they are, and what random ones reach."""
    return SUMMARY, [_summary(task) for task in results.tasks.values()]


def _summary(task: TaskResults) -> list[str]:
    circuit, edges = task.circuit, task.edge_circuit
    held, control = circuit["faithfulness"]["held_out"], circuit["controls"].get("layer", {})
    edge = edges["faithfulness"]["held_out"]
    return [
        task.task,
        f"{task.count('discovery')} / {task.count('held_out')}",
        f"{len(circuit['heads'])} of {circuit['n_layers'] * circuit['n_heads']}",
        f"{len(circuit['mlps'])} of {circuit['n_layers']}",
        with_interval(held["percent"], held["percent_low"], held["percent_high"], 1),
        _control(control, 1),
        f"{number(circuit['completeness'].get('worst'), 1)} points",
        str(len(edges["edges"])),
        with_interval(edge["value"], edge["low"], edge["high"]),
    ]


def _control(control: Mapping[str, Any], digits: int) -> str:
    if not control or not control.get("count"):
        return "none exist"
    values = (number(control.get(key), digits) for key in ("mean", "max"))
    return f"{', '.join(values)}, {number(control['p'], 3)} ({control['count']} circuits)"


def prompt_rows(results: CircuitResults) -> Rows:
    """Return one row a task: an example of its prompts."""
    columns = ["task", "clean", "corrupted", "answer", "wrong answer"]
    rows = []
    for task in results.tasks.values():
        first = task.prompts[0]
        keys = ("text", "corrupted_text", "answer_text", "wrong_text")
        rows.append([task.task, *(first.get(key, "") for key in keys)])
    return columns, rows


def control_rows(task: TaskResults) -> Rows:
    """Return one row a kind of random circuit."""
    columns = ["random circuits", "circuit", "mean", "best", "p", "count"]
    rows = []
    for name, words in PROFILES.items():
        control = task.circuit["controls"].get(name)
        if control:
            values = [number(control[key], 1) for key in ("percent", "mean", "max")]
            rows.append([words, *values, number(control["p"], 3), str(control["count"])])
    return columns, rows


def role_rows(table: pd.DataFrame, reads: int = 3) -> Rows:
    """Return one row a head that has a label or an effect that can be told from zero, with what was measured.

    Parameters
    ----------
    table : data frame
        roles/heads.parquet.
    reads : int
        Roles that a head attends to from the end, the most attended ones.
    """
    columns = ["head", "measured role", "effect", "share of the logit difference", "looks from the end at",
        "previous token", "duplicate", "induction", "copies", "writes against", "succession"]  # fmt: skip
    rows = table.assign(size=table["effect"].abs())
    rows = rows[(rows["labels"] != "") | (rows["size"] >= 0.05)]
    return columns, [
        [
            row["component"],
            row["labels"] or "none",
            number(row["effect"]),
            number(row["attribution"]),
            _looks(row, reads),
            *(
                number(row[name])
                for name in (
                    "previous_token", "duplicate_token", "induction", "copying", "negative_copying", "succession",
                )
            ),
        ]
        for _, row in rows.iterrows()
    ]  # fmt: skip


def _looks(row: pd.Series, count: int) -> str:
    seen = row.filter(like="attention_end_").dropna().astype(float)
    seen = seen[seen >= 0.1].sort_values(ascending=False, kind="stable").head(count)
    prefix = len("attention_end_")
    return ", ".join(f"{name[prefix:]} {number(value)}" for name, value in seen.items()) or number(
        None
    )


def minimal_rows(minimality: pd.DataFrame, count: int = 8) -> Rows:
    """Return the least needed nodes of a circuit."""
    columns = ["node", "removed alone, points", "most it changes, points", "after removal of"]
    return columns, [
        [row.component, number(row.alone), number(row.largest), row.removed or "nothing"]
        for row in minimality.head(count).itertuples()
    ]


def area_rows(edge_circuit: Mapping[str, Any]) -> Rows:
    """Return the areas of the faithfulness curves by method."""
    columns = ["edges ranked by", "CPR (higher is better)", "CMD (lower is better)"]
    return columns, [
        [method_style(name)[2], number(area["cpr"], 3), number(area["cmd"], 3)]
        for name, area in edge_circuit.get("areas", {}).items()
    ]


def agreement_rows(task: TaskResults) -> Rows:
    """Return how well each estimate agrees with exact effects on the prompts of these, over all edges."""
    agreement, effects = task.table("edges/agreement"), task.edge_effects
    pairs = effects.loc[effects["method"] == "exact", "pairs"].max()
    tops = [name for name in ("top_10", "top_100", "top_1000") if name in agreement]
    columns = ["estimate", "discovery prompts", "edges", "Pearson", "rank correlation",
               *(f"same among the strongest {t[4:]}" for t in tops)]  # fmt: skip
    rows = agreement[agreement["kind"] == "all"]
    return columns, [
        [
            method_style(row["method"])[2],
            str(pairs),
            str(int(row["edges"])),
            *(number(row[name], 3) for name in ("pearson", "spearman", *tops)),
        ]
        for _, row in rows.iterrows()
    ]


def scored_by(task: TaskResults) -> str:
    """Say whose scores of edges are shown, and over how many prompts they are means."""
    effects = task.drawn_effects
    if not len(effects):
        return "no scores"
    method, pairs = effects.iloc[0][["method", "pairs"]]
    return f"{method_style(method)[2]}, mean over {pairs} discovery prompts"


def edge_effect_rows(task: TaskResults, count: int = 12) -> Rows:
    """Return the strongest edges of the edge circuit."""
    columns = ["edge", f"change of the metric when it is corrupted ({scored_by(task)})"]
    edges = task.edge_table()
    edges = edges.reindex(edges["score"].abs().sort_values(ascending=False, kind="stable").index)
    return columns, [
        [f"{edge.source} → {edge.destination}", number(edge.score, 3)]
        for edge in edges.head(count).itertuples()
    ]


def path_rows(paths: pd.DataFrame, count: int = 15) -> Rows:
    """Return the paths whose corruption takes most from the metric."""
    columns = ["from", "to", "through MLPs", "drop, % of the model", "q"]
    order = paths["drop"].abs().sort_values(ascending=False, kind="stable").index[:count]
    return columns, [
        [
            row["sender"],
            row["receiver"],
            "yes" if row["through_mlps"] else "no",
            with_interval(row["drop"], row["low"], row["high"], 1),
            probability(row["p_fdr"]),
        ]
        for _, row in paths.loc[order].iterrows()
    ]


def overlap_rows(overlap: pd.DataFrame) -> Rows:
    """Return what pairs of tasks share."""
    columns = [
        "circuits of",
        "first",
        "second",
        "Jaccard of heads",
        "shared heads",
        "Jaccard of MLPs",
        "shared MLPs",
    ]
    return columns, [
        [
            {"least_harmful": "nodes, least harmful first"}.get(row.method, row.method),
            row.first,
            row.second,
            number(row.heads_jaccard),
            row.heads_shared or "none",
            number(row.mlps_jaccard),
            row.mlps_shared or "none",
        ]
        for row in overlap.itertuples()
    ]  # fmt: skip


def transition_rows(transitions: pd.DataFrame) -> Rows:
    """Return the test of the next member, block by block, with counts and intervals."""
    columns = [
        "layer", "prompts", "member before on top before it", "answer on top after it", "both", "share with both",
        "any earlier member, then the answer", "answer takes the top for good", "of those, from the member before",
    ]  # fmt: skip
    known = "earlier" in transitions
    names = ("earlier_share", "earlier_low", "earlier_high")
    return columns, [
        [
            str(row.layer),
            str(row.prompts),
            str(row.before),
            str(row.answer),
            str(row.exact),
            with_interval(row.exact_share, row.exact_low, row.exact_high, 3),
            with_interval(*(getattr(row, name) for name in names), 3) if known else number(None),
            str(row.for_good),
            str(row.for_good_exact),
        ]
        for row in transitions.itertuples()
    ]  # fmt: skip


def qk_rows(matches: pd.DataFrame, count: int = 15) -> Rows:
    """Return the pairs of roles that heads match most by what stands there, if it can be told from chance."""
    columns = [
        "head",
        "query",
        "key",
        "score above the other keys",
        "of that, by the word alone",
        "q",
    ]
    sure = matches[(matches["content_p_fdr"] < 0.05) & (matches["query"] != matches["key"])]
    rows = sure.sort_values("content", ascending=False, kind="stable").head(count)
    return columns, [
        [
            row.component,
            row.query,
            row.key,
            with_interval(row.score, row.score_low, row.score_high),
            with_interval(row.content, row.content_low, row.content_high),
            probability(row.content_p_fdr),
        ]
        for row in rows.itertuples()
    ]


def qk_member_rows(table: pd.DataFrame, count: int = 8) -> Rows:
    """Return the heads that tell members from other words best, with which member matches which best."""
    names = [name for name in ("duplicate", "previous", "next") if name in table]
    words = {"duplicate": "itself", "previous": "the one before", "next": "the one after"}
    columns = [
        "head",
        "members against other words (AUC)",
        *(f"best match: {words[n]}" for n in names),
        "chance",
    ]
    size = (table["similar"] - 0.5).abs().sort_values(ascending=False, kind="stable")
    return columns, [
        [
            row["component"],
            with_interval(row["similar"], row["similar_low"], row["similar_high"]),
            *(f"{row[f'{n}_hits']} of {row[f'{n}_of']}" for n in names),
            number(row["chance"]),
        ]
        for _, row in table.loc[size.index[:count]].iterrows()
    ]


def ov_member_rows(table: pd.DataFrame, count: int = 8) -> Rows:
    """Return the heads that promote a member, or the next one, most often among the members."""
    names = [name for name in ("copy", "next") if name in table]
    words = {"copy": "itself", "next": "the next one"}
    gain = "next_minus_copy"
    columns = [
        "head",
        *(f"promotes most: {words[n]}" for n in names),
        "chance",
        *(["next minus itself, logits"] if gain in table else []),
    ]
    best = table[names].max(axis=1).sort_values(ascending=False, kind="stable").index[:count]
    return columns, [
        [
            row["component"],
            *(f"{row[f'{n}_hits']} of {row[f'{n}_of']}" for n in names),
            number(row["chance"]),
            *(
                [with_interval(row[gain], row[f"{gain}_low"], row[f"{gain}_high"])]
                if gain in table
                else []
            ),
        ]
        for _, row in table.loc[best].iterrows()
    ]


def published_rows(published: pd.DataFrame) -> Rows:
    """Return our numbers beside published ones."""
    columns = ["task", "quantity", "item", "ours", "published", "difference", "source"]
    return columns, [
        [
            str(row.task),
            str(row.quantity),
            str(row.item),
            _value(row.ours),
            _value(row.published),
            _value(row.difference),
            str(row.source),
        ]
        for row in published.itertuples()
    ]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else number(None if value is None else float(value))
