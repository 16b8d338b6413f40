"""Nodes of a task from end to end: knock-outs, pruning with and without an order, and what the circuits are worth.

Circuits are found on discovery prompts; everything that judges them uses held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.circuit_file import Circuit, make_circuit
from mechatlas.circuits.components import Graph, parse_node
from mechatlas.circuits.controls import against_random
from mechatlas.circuits.evaluate import completeness, faithfulness, knock_outs, minimality
from mechatlas.circuits.least_harmful import prune_least_harmful
from mechatlas.circuits.legacy_ablation import LegacyAblation
from mechatlas.circuits.pruning import Pruned, PruneSettings, Record, prune
from mechatlas.circuits.resume import StepLog, Store
from mechatlas.circuits.stability import first_of_each, stability
from mechatlas.circuits.steps import Steps
from mechatlas.circuits.task_data import Arrays, TaskData, arrays_of

PROCEDURES = ("greedy", "least_harmful")
LEGACY = "legacy"
CONTROLS = ("layer", "size")  # profiles of the random circuits


@dataclass(frozen=True)
class NodeStudy:
    """Results of `study_nodes`; the tables are described in docs/files.md.

    Attributes
    ----------
    circuits : dict of str to Circuit
        By procedure.
    tables : dict of str to DataFrame
        ``effects``, ``pruning``, ``stability``, ``completeness``, ``minimality``, ``random``, ``curve``.
    evaluated : dict of str to int
        Sets of nodes that were run, by procedure; steps of an interrupted run are not among them.
    """

    circuits: dict[str, Circuit]
    tables: dict[str, pd.DataFrame]
    evaluated: dict[str, int]


def study_nodes(
    data: TaskData,
    settings: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    bootstrap: int,
    log: Callable[[str], StepLog],
    parts: Store,
) -> NodeStudy:
    """Find and judge the circuits of nodes of a task.

    Parameters
    ----------
    data : TaskData
    settings : mapping
        ``circuits.nodes`` of the config.
    seed : int
    confidence : float
    bootstrap : int
    log : callable
        Gives the log of a procedure, from which an interrupted one continues.
    parts : Store
        Keeps finished samples of the stability, or has those that other jobs have made (`prune_halves`).

    Raises
    ------
    UserError
        If the model does not do the task, or a node to keep does not exist.
    """
    options = {"seed": seed, "confidence": confidence, "replicates": bootstrap}
    found_on = _found_on(data, settings["num_samps"])
    discovery = make_ablation(data, found_on, settings)
    held_out = make_ablation(data, arrays_of(data.held_out), settings)
    pruned = _prune(discovery, _wanted(settings), settings, log)
    halves = prune_halves(data, settings, seed=seed, parts=parts)
    tables = {
        "effects": _effects(discovery, held_out, pruned["greedy"].keep, options),
        "pruning": _pruning_table(pruned),
        "curve": _curve(discovery, held_out, pruned, options),
        "stability": _stability_table(data, halves, pruned["greedy"].keep),
    }
    facts = {
        name: {"faithfulness": _both_splits(discovery, held_out, result.keep, options)}
        for name, result in pruned.items()
    }
    judgement, tested = _judge(held_out, pruned["greedy"].keep, settings, seed)
    facts["greedy"] |= judgement
    tables |= tested
    facts["greedy"]["least_harmful_jaccard"] = jaccard(
        *(pruned[p].keep.numpy() for p in PROCEDURES)
    )
    facts["greedy"]["stability"] = {
        "samples": len(halves),
        "jaccard": float(
            np.mean([jaccard(half, pruned["greedy"].keep.numpy()) for half in halves])
        ),
    }
    circuits = {
        name: make_circuit(
            data.model, result.keep, task=data.task, method=f"nodes, {name}",
            facts={
                "settings": dict(settings), "score": result.score, **facts[name],
            },
        )
        for name, result in pruned.items()
    }  # fmt: skip
    # Not among the facts, which are the same for a run that was interrupted.
    evaluated = {name: result.evaluated for name, result in pruned.items()}
    return NodeStudy(circuits, tables, evaluated)


def node_steps(folder: str | Path, data: TaskData, settings: Mapping[str, Any], seed: int) -> Steps:
    """Return where decisions of the procedures and finished halves are kept."""
    deciding = {"nodes": dict(settings), "seed": seed}
    return Steps(folder, data, deciding, "circuits/pruning.py")


def prune_halves(
    data: TaskData,
    settings: Mapping[str, Any],
    *,
    seed: int,
    parts: Store,
    numbers: Iterable[int] | None = None,
) -> np.ndarray:
    """Return the circuits of random halves of the discovery prompts (see `stability`), all or some by number."""
    found_on = _found_on(data, settings["num_samps"])
    return stability(
        lambda rows: make_ablation(data, tuple(x[rows] for x in found_on), settings),
        len(found_on[0]), _wanted(settings), samples=settings["stability_samples"], seed=seed,
        parts=parts, numbers=numbers,
    )  # fmt: skip


def make_ablation(data: TaskData, arrays: Arrays, settings: Mapping[str, Any]) -> Ablation:
    """Return the ablation of the settings (``ablation``, ``metric``) on some prompts."""
    if settings["ablation"] == LEGACY:
        return LegacyAblation(data.model, *arrays, metric=settings["metric"])
    return Ablation(data.model, *arrays, kind=settings["ablation"], metric=settings["metric"])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of two sets' nodes that both have (1 if both are empty)."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def _wanted(settings: Mapping[str, Any]) -> PruneSettings:
    return PruneSettings(settings["threshold"], settings["one_iter"], tuple(settings["keep"]))


def _found_on(data: TaskData, count: int | None) -> Arrays:
    batch = data.discovery
    if count is not None:
        batch = batch.select(first_of_each(batch.groups, count))
    return arrays_of(batch)


def _prune(
    ablation: Ablation,
    wanted: PruneSettings,
    settings: Mapping[str, Any],
    log: Callable[[str], StepLog],
) -> dict[str, Pruned]:
    logs = {name: log(name) for name in PROCEDURES}
    free, given = logs["least_harmful"], logs["greedy"]
    return {
        "greedy": prune(ablation, wanted, decided=given.decided, log=given),
        "least_harmful": prune_least_harmful(
            ablation, wanted, step=settings["least_harmful_step"], decided=free.decided, log=free
        ),
    }


def _effects(
    discovery: Ablation, held_out: Ablation, keep: Tensor, options: Mapping[str, Any]
) -> pd.DataFrame:
    full = knock_outs(discovery, discovery.full, **options).assign(base="full")
    tables = [full]
    if bool(keep.any()):
        tables.append(knock_outs(held_out, keep, **options).assign(base="circuit"))
    table = with_place(pd.concat(tables, ignore_index=True))
    first = ["component", "layer", "head", "base"]
    return table[first + [c for c in table if c not in first]]


def with_place(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of nodes with ``layer`` and ``head`` (-1 for an MLP) of the column ``component``."""
    places = [parse_node(name) for name in table["component"]]
    return table.assign(
        layer=np.array([layer for layer, _ in places], dtype=np.int64),
        head=np.array([-1 if head is None else head for _, head in places], dtype=np.int64),
    )


def _pruning_table(pruned: Mapping[str, Pruned]) -> pd.DataFrame:
    rows, columns = [], ["procedure", "step", "pass", "direction", "component", "score", "removed"]
    left = pruned["greedy"].keep.numel()
    for step, record in enumerate(pruned["greedy"].records):
        left -= record["removed"]
        plain = (record[key] for key in ("pass", "direction", "node", "score", "removed"))
        rows.append(["greedy", step, *plain, left])
    left = pruned["least_harmful"].keep.numel()
    for step, record in enumerate(pruned["least_harmful"].records):
        left -= len(record["removed"])
        for name, score in record["scores"].items():
            rows.append(
                ["least_harmful", step, -1, "", name, score, name in record["removed"], left]
            )
    return pd.DataFrame(rows, columns=[*columns, "nodes"])


def _curve(
    discovery: Ablation,
    held_out: Ablation,
    pruned: Mapping[str, Pruned],
    options: Mapping[str, Any],
) -> pd.DataFrame:
    """Return faithfulness after every removal, on both splits."""
    tables, graph = [], Graph.of(discovery.model.config)
    for procedure, result in pruned.items():
        keeps = torch.stack(_sets_on_the_way(graph, discovery.full, result.records))
        for split, ablation in (("discovery", discovery), ("held_out", held_out)):
            table = faithfulness(ablation, keeps, **options)
            tables.append(table.assign(procedure=procedure, split=split))
    values = [f"{n}{end}" for n in ("percent", "recovered") for end in ("", "_low", "_high")]
    return pd.concat(tables, ignore_index=True)[["procedure", "nodes", "split", *values]]


def _sets_on_the_way(graph: Graph, full: Tensor, records: list[Record]) -> list[Tensor]:
    sets = [full]
    for record in records:
        gone = record["removed"]
        names = gone if isinstance(gone, list) else [record["node"]] * gone
        if names:
            sets.append(sets[-1] & ~torch.from_numpy(graph.node_set(names)))
    return sets


def _stability_table(data: TaskData, halves: np.ndarray, keep: Tensor) -> pd.DataFrame:
    table = pd.DataFrame({"component": Graph.of(data.model.config).nodes})
    table = with_place(table)
    table["frequency"] = halves.mean(0).ravel()
    table["in_circuit"] = keep.flatten().numpy()
    return table


def _both_splits(
    discovery: Ablation, held_out: Ablation, keep: Tensor, options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    rows = {
        split: faithfulness(ablation, keep[None], **options).iloc[0].to_dict()
        for split, ablation in (("discovery", discovery), ("held_out", held_out))
    }
    return {split: _plain(row) for split, row in rows.items()}


def _judge(
    held_out: Ablation, keep: Tensor, settings: Mapping[str, Any], seed: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return facts of a circuit for its file, and the tables ``random``, ``completeness`` and ``minimality``."""
    count, sizes = (
        settings["random_circuits"],
        {"samples": settings["subset_samples"], "seed": seed},
    )
    controls = {p: against_random(held_out, keep, count, seed=seed, profile=p) for p in CONTROLS}
    random = pd.DataFrame(
        [(p, i, v) for p, c in controls.items() for i, v in enumerate(c.pop("random"))],
        columns=["profile", "circuit", "percent"],
    )
    if bool(keep.any()):
        complete, minimal = (
            completeness(held_out, keep, **sizes),
            minimality(held_out, keep, **sizes),
        )
    else:
        complete = pd.DataFrame(columns=["kind", "removed", "circuit", "model", "incompleteness"])
        minimal = pd.DataFrame(columns=["component", "alone", "largest", "removed"])
    facts = {
        "controls": controls,
        "completeness": _first(complete, {"worst": "incompleteness", "removed": "removed"}),
        "minimality": _first(minimal, {"worst": "largest", "component": "component"}),
    }
    return facts, {"random": random, "completeness": complete, "minimality": minimal}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as JSON can hold them."""
    plain = {key: float(value) for key, value in row.items()}
    plain = {key: value if np.isfinite(value) else None for key, value in plain.items()}
    return {**plain, "nodes": int(row["nodes"])}


def _first(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    if not len(table):
        return dict.fromkeys(columns)
    row = table.iloc[0]
    return {
        key: row[name] if isinstance(row[name], str) else float(row[name])
        for key, name in columns.items()
    }
