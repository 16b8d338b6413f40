"""Data of the map and of the pages of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechatlas.figures.atlas.data import (
    interval,
    number,
    score_tree,
    truth,
    write_data,
)
from mechatlas.figures.atlas.examples import RandomQueries, head_example, strongest_queries
from mechatlas.figures.atlas.judge import judge_names, judge_rows, judged_as
from mechatlas.figures.examples import WindowTexts
from mechatlas.figures.html import visible_characters
from mechatlas.io import read_json, read_jsonl, read_table

SHOWS, SAYS = "shows_", "says_"
#: Entries of score tables that are shown.
MOST_RELATIONS = 8


def words(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what explanations say of heads: an entry for each row of the cross-table that has an explanation."""
    scores = judge_names(table)
    return [
        {
            **{"head": row["component"], "source": row["source"], "explainer": row["explainer"]},
            **{"class": row["class"], "text": visible_characters(row["text"])},
            "kind": row["kind"],
            "iou": interval(row, "iou"),
            "no_sink": number(row["iou_without_sink"]),
            "advantage": interval(row, "advantage"),
            "control": row["best_control"],
            "beats": truth(row["beats_every_control"]),
            "loss": number(row["loss_recovered"]),
            "cluster": number(row["cluster"]),
            **judged_as(row, scores),
        }
        for row in table.to_dict("records")
    ]


def shows(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the measured attention of behaviours by head, empty without a task."""
    columns = [name for name in table.columns if name.startswith(SHOWS)]
    first = table.drop_duplicates("component")
    return {
        row["component"]: {name.removeprefix(SHOWS): number(row[name]) for name in columns}
        for row in first.to_dict("records")
    }


def says(table: pd.DataFrame, share: float) -> dict[str, dict[str, list[str]]]:
    """Return head -> source/explainer -> the behaviours to which its words give at least a share of its attention."""
    columns = [name for name in table.columns if name.startswith(SAYS) and name != f"{SAYS}idle"]
    found: dict[str, dict[str, list[str]]] = {}
    for row in table.to_dict("records"):
        named = [name.removeprefix(SAYS) for name in columns if row[name] >= share]
        found.setdefault(row["component"], {})[f"{row['source']}/{row['explainer']}"] = named
    return found


def written(table: pd.DataFrame) -> dict[str, list[list[Any]]]:
    """Return the latents that each head writes to: dictionary, unit, multiple of chance."""
    found: dict[str, list[list[Any]]] = {}
    for row in table.itertuples():
        found.setdefault(row.component, []).append(
            [row.dictionary, row.unit, number(row.times_chance, 3)]
        )
    return found


def clusters(path: Path) -> list[dict[str, Any]]:
    """Return the clusters of explanations of one source."""
    return [
        {key: cluster[key] for key in ("id", "label", "medoid", "units")}
        for cluster in read_json(path)["clusters"]
    ]


def write_heads(
    folder: Path,
    model: str,
    sources: Mapping[str, Path],
    layers: int,
    tokenizer: Any,
    chunks: Mapping[str, Sequence[str]],
    seed: int,
    judged: bool,
) -> None:
    """Write what the pages of heads show, one file a layer.

    Parameters
    ----------
    folder : Path
        Of the atlas.
    model : str
    sources : mapping
        Source -> its results.
    layers : int
    tokenizer : Tokenizer
    chunks : mapping
        Source -> its capture folders.
    seed : int
    judged : bool
        Whether a judge scored the explanations.
    """
    every: list[dict[str, Any]] = [{} for _ in range(layers)]
    for source, place in sources.items():
        for layer, found in _of_source(place, layers, tokenizer, chunks[source], seed):
            for head, entry in found.items():
                every[layer].setdefault(head, {})[source] = entry
        if judged:
            for (layer, head), rows in judge_rows(place / "heads").items():
                entry = every[layer].setdefault(f"L{layer}.H{head}", {}).setdefault(source, {})
                entry["judge"] = rows
    for layer, found in enumerate(every):
        write_data(folder, f"{model}/heads-{layer}", found)


def _of_source(
    place: Path, layers: int, tokenizer: Any, chunks: Sequence[str], seed: int
) -> list[tuple[int, dict[str, Any]]]:
    """Return layer and head -> scores by explainer, programs by explainer, examples."""
    windows = read_table(place / "windows.parquet")
    tokens = WindowTexts(windows, tokenizer)
    columns = [
        "layer",
        "head",
        "window",
        "doc",
        "split",
        "query",
        "key",
        "attention",
        "write_norm",
        "role",
    ]
    strongest = strongest_queries(read_table(place / "heads/raw_events.parquet", columns))
    scored = score_tree(read_table(place / "heads/scores.parquet"), ["layer", "head"])
    programs: dict[tuple[int, int], dict[str, Any]] = {}
    for record in read_jsonl(place / "heads/explanations.jsonl"):
        mine = programs.setdefault((record["layer"], record["head"]), {})
        mine[record["explainer"]] = _program(record.get("program"))
    drawn = RandomQueries(windows, chunks, seed)
    found = []
    for layer in range(layers):
        attention = drawn.of_layer(layer)
        last = max((head for one, head in strongest if one == layer), default=-1)
        entries = {
            f"L{layer}.H{head}": {
                "scores": scored.get((layer, head), {}),
                "programs": programs.get((layer, head), {}),
                "top": [
                    head_example(tokens[e.window], e) for e in strongest.get((layer, head), [])
                ],
                "random": drawn.examples(attention, head, tokens) if len(attention) else [],
            }
            for head in range(attention.shape[1] if len(attention) else last + 1)
        }
        found.append((layer, entries))
    return found


def _program(program: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """Return the parts of a program; of learned tables only the sizes and the strongest relations."""
    if program is None:
        return None
    return [
        {
            "share": number(part["share"]),
            "form": part["form"]["form"],
            "fields": _fields(part["form"]),
        }
        for part in program["parts"]
    ]


def _fields(form: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in form.items():
        if name == "form" or value is None:
            continue
        if name == "relations":
            order = sorted(value.items(), key=lambda item: (-abs(item[1]), item[0]))
            found[name] = [[key, number(nats, 3)] for key, nats in order[:MOST_RELATIONS]]
        else:
            found[name] = (
                f"{len(value)} entries" if isinstance(value, (list, tuple, dict)) else value
            )
    return found
