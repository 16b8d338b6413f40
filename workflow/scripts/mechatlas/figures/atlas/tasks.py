"""Data of the pages of circuits, and what a task says about heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mechatlas.figures.atlas.data import interval, number, numbers, write_data
from mechatlas.figures.html import visible_characters
from mechatlas.io import read_json, read_jsonl, read_table

#: Columns of the cross-table about one head in one task.
SCORES = ("copies", "promotes_next", "member_copy", "member_next", "matches", "attribution")
EXACT = "exact"


def task_summary(folder: Path, name: str, kind: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return what the map and the pages of heads show of a task.

    Parameters
    ----------
    folder : Path
        Results of the task.
    name, kind : str
    table : data frame
        cross_table.parquet.
    """
    prompts = read_jsonl(folder / "prompts.jsonl")
    first, counts = prompts[0], pd.Series([p["split"] for p in prompts]).value_counts()
    circuit, edges = (read_json(folder / f"{kind}/circuit.json") for kind in ("nodes", "edges"))
    rows = table.drop_duplicates("component").to_dict("records")
    heads = {row["component"]: _head(row, name) for row in rows}
    return {
        "kind": kind,
        "prompt": {
            key: visible_characters(first[f"{key}text" if key != "text" else "text"])
            for key in ("text", "corrupted_", "answer_", "wrong_")
        },
        "counts": {split: int(count) for split, count in sorted(counts.items())},
        "circuit": _circuit(circuit),
        "edges": {
            "count": len(edges["edges"]),
            "held_out": _share(edges["faithfulness"]["held_out"]),
            "random": {
                key: number(edges["control"].get(key)) for key in ("mean", "max", "p", "count")
            },
        },
        "heads": heads,
    }


def _head(row: Mapping[str, Any], task: str) -> dict[str, Any]:
    found = {
        key: [*interval(row, f"{task}.{key}"), number(row[f"{task}.{key}_p_fdr"])]
        for key in ("effect", "drop")
    }
    found |= {key: row[f"{task}.{key}"] for key in ("roles", "circuits")}
    return found | {key: number(row[f"{task}.{key}"]) for key in SCORES}


def _circuit(circuit: Mapping[str, Any]) -> dict[str, Any]:
    held = circuit["faithfulness"]["held_out"]
    controls = circuit.get("controls") or {}
    return {
        "nodes": [f"L{layer}.H{head}" for layer, head in circuit["heads"]]
        + [f"L{layer}.mlp" for layer in circuit["mlps"]],
        "held_out": interval(held, "percent"),
        "random": {
            profile: {key: number(control.get(key)) for key in ("mean", "max", "p", "count")}
            for profile, control in controls.items()
            if control
        },
    }


def _share(value: Mapping[str, Any]) -> list[Any]:
    """Return a faithfulness between 0 and 1 in percent."""
    found = (value.get(key) for key in ("value", "low", "high"))
    return numbers(None if one is None else 100 * one for one in found)


def write_task(folder: Path, model: str, task: str, place: Path) -> None:
    """Write what the page of one circuit shows.

    Parameters
    ----------
    folder : Path
        Of the atlas.
    model, task : str
    place : Path
        Results of the task.
    """
    curve = read_table(place / "nodes/curve.parquet")
    random = read_table(place / "nodes/random.parquet")
    stability = read_table(place / "nodes/stability.parquet")
    knocked = read_table(place / "nodes/effects.parquet")
    knocked = knocked[knocked["base"] == "full"]
    edge_curve = read_table(place / "edges/curve.parquet")
    data = {
        "curve": [
            [row["procedure"], row["split"], int(row["nodes"]), *interval(row, "percent")]
            for row in curve.to_dict("records")
        ],
        "random": {
            profile: numbers(sorted(rows["percent"]))
            for profile, rows in random.groupby("profile", sort=False)
        },
        "stability": dict(
            zip(stability["component"], numbers(stability["frequency"]), strict=True)
        ),
        "drop": {
            row["component"]: [*interval(row, "drop", "low", "high"), number(row["p_fdr"])]
            for row in knocked.to_dict("records")
        },
        "edge_curve": [
            [
                *(row["method"], bool(row["signed"]), int(row["realised"])),
                *interval(row, "faithfulness", "low", "high"),
                number(row["random"]),
            ]
            for row in edge_curve.to_dict("records")
        ],
        "edges": _edges(place),
    }
    write_data(folder, f"{model}/task-{task}", data)


def _edges(place: Path) -> list[list[Any]]:
    """Return the edges of the circuit: source, destination, kind, score, strongest first."""
    inside = set(read_json(place / "edges/circuit.json")["edges"])
    table = read_table(place / "edges/effects.parquet")
    methods = list(table["method"].unique())
    table = (
        table[table["method"] == (EXACT if EXACT in methods else methods[0])] if methods else table
    )
    names = table["source"] + " -> " + table["destination"]
    rows = table[names.isin(inside)]
    order = rows["score"].abs().sort_values(ascending=False, kind="stable").index
    columns = ["source", "destination", "kind", "score"]
    return [
        [source, destination, kind, number(score)]
        for source, destination, kind, score in rows.loc[order, columns].itertuples(index=False)
    ]
