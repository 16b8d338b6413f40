"""Edges of a task from end to end: scores by every method, the smallest faithful circuit, ACDC, curves, paths.

Edges are scored and circuits found on discovery prompts; curves, controls and final faithfulness use held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechatlas.circuits import backend
from mechatlas.circuits.acdc import order_sensitivity
from mechatlas.circuits.agreement import TOP, agreement
from mechatlas.circuits.circuit_file import Circuit, make_circuit
from mechatlas.circuits.components import Graph
from mechatlas.circuits.edge_parts import EXACT, EdgeParts
from mechatlas.circuits.edges import (
    EdgeScores,
    edge_names,
    edge_set,
    kinds_of,
    nodes_of,
    prune,
    random_edges,
)
from mechatlas.circuits.effects import effect_rows
from mechatlas.circuits.resume import Afresh, Parts, StepLog, Store
from mechatlas.circuits.task_data import TaskData
from mechatlas.io import progress, rng_for

CURVE = (
    *("shares", "sizes", "realised", "faithfulness", "low", "high"),
    *("random", "random_low", "random_high"),
)


@dataclass(frozen=True)
class EdgeStudy:
    """Results of `study_edges`; the tables are described in docs/files.md.

    Attributes
    ----------
    circuit, acdc : Circuit
    tables : dict of str to DataFrame
        ``effects``, ``curve``, ``agreement``, ``paths``.
    """

    circuit: Circuit
    acdc: Circuit
    tables: dict[str, pd.DataFrame]


def study_edges(
    data: TaskData,
    settings: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    bootstrap: int,
    log: Callable[[str], StepLog],
    parts: Parts,
    done: Store | None = None,
) -> EdgeStudy:
    """Score edges by every method of the settings, and find and judge circuits.

    Parameters
    ----------
    data : TaskData
    settings : mapping
        ``circuits.edges`` of the config.
    seed : int
    confidence : float
    bootstrap : int
    log : callable
        Gives the log of an order of ACDC, from which an interrupted one continues.
    parts : Parts
        Keeps the exact effects of finished pairs.
    done : Store, optional
        Parts that other jobs have made (`trace_parts`).

    Raises
    ------
    UserError
        If the corrupted prompts give a metric as good as the clean ones.
    """
    done = Afresh() if done is None else done
    found = EdgeParts(data, settings, seed=seed, log=log, kept=parts, done=done)
    judged = _Judge(found, confidence)
    scores = {method: found.scores(method) for method in settings["methods"]}
    agreements: list[pd.DataFrame] = []
    if settings["exact_prompts"]:
        scores[EXACT] = found.scores(EXACT)
        agreements = [
            _agreement(found.graph, method, found.attribute(found.few, method), scores[EXACT])
            for method in settings["methods"]
        ]
    curves, areas = _curves(found, scores)
    circuit, by_acdc = judged.smallest(areas), judged.acdc()
    in_both = [edge_set(found.graph, c.edges or ()) for c in (circuit, by_acdc)]
    tables = {
        "effects": _effects_table(found.graph, scores, *in_both),
        "curve": curves,
        "agreement": pd.concat(agreements) if agreements else pd.DataFrame(columns=_AGREEMENT),
        "paths": _paths(found, {"seed": seed, "confidence": confidence, "replicates": bootstrap}),
    }
    return EdgeStudy(circuit, by_acdc, tables)


class _Judge:
    """Circuits of edges and how faithful they are."""

    def __init__(self, parts: EdgeParts, confidence: float):
        self.parts, self.settings, self.graph = parts, parts.settings, parts.graph
        self.seed, self.confidence = parts.seed, confidence
        # At once, so that prompts which show nothing are found before hours are spent on them.
        self.search, self.judge = parts.search, parts.judge

    def smallest(self, areas: Mapping[str, Mapping[str, float]]) -> Circuit:
        """Return the smallest circuit, with the areas under the curves of all methods."""
        found = self.parts.smallest()
        facts = {
            "score": found.faithfulness,
            "ranked": found.ranked,
            "evaluated": found.evaluated,
            "faithfulness": self._both(found.edges),
            "control": self._control(found.edges),
            "areas": areas,
            "backend": {name: float(f"{error:.1e}") for name, error in backend.measure().items()},
        }
        return self._circuit(found.edges, "edges, smallest", facts)

    def acdc(self) -> Circuit:
        """Run ACDC under several orders; the first, fixed one gives the circuit."""
        numbers = progress(range(self.settings["acdc_orders"]), desc="acdc", unit="order")
        found = [self.parts.acdc(number) for number in numbers]
        if not found:
            none = np.zeros_like(self.graph.edges)
            return self._circuit(none, "edges, acdc", {"orders": {"count": 0}})
        first, orders = found[0], order_sensitivity(found)
        edges = prune(self.graph, first)
        facts = {
            "score": float(self.search(edges[None])[0]),
            "faithfulness": self._both(edges),
            "orders": {
                "count": len(found),
                "jaccard_mean": orders["jaccard_mean"],
                "jaccard_min": orders["jaccard_min"],
                "sizes": [int(size) for size in orders["sizes"]],
            },
        }
        return self._circuit(edges, "edges, acdc", facts)

    def _circuit(self, edges: np.ndarray, method: str, facts: Mapping[str, Any]) -> Circuit:
        data = self.parts.data
        return make_circuit(
            data.model,
            torch.from_numpy(nodes_of(self.graph, edges)),
            task=data.task,
            method=method,
            edges=edge_names(self.graph, edges),
            facts={"settings": dict(self.settings), **facts},
        )

    def _both(self, edges: np.ndarray) -> dict[str, dict[str, float]]:
        out = {}
        for split, measure in (("discovery", self.search), ("held_out", self.judge)):
            values = measure.values(edges[None])
            rng = rng_for(self.seed, "edge circuit", split)
            low, high = measure.intervals(values, rng, self.confidence)[0]
            out[split] = {"value": float(measure.shares(values)[0]), "low": low, "high": high}
        return out

    def _control(self, edges: np.ndarray) -> dict[str, Any]:
        """Compare with random sets of edges of the same size and profile, on held-out prompts."""
        rng, count = rng_for(self.seed, "random edges"), self.settings["random_sets"]
        if not count:
            return {"count": 0, "mean": None, "max": None, "p": None}
        drawn = [prune(self.graph, random_edges(self.graph, edges, rng)) for _ in range(count)]
        own, *random = self.judge(np.stack([edges, *drawn])).tolist()
        better = sum(value >= own for value in random)
        return {
            "count": count, "mean": float(np.mean(random)), "max": max(random),
            "p": (1 + better) / (1 + count),
        }  # fmt: skip


def _curves(
    parts: EdgeParts, methods: Iterable[str]
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Return curves of every method, ranked by strength and by helpfulness, and their areas."""
    tables, areas = [], {}
    for method in methods:
        areas[method] = {}
        for signed in (False, True):
            curve = parts.curve(method, signed)
            areas[method] |= {"cpr": curve.cpr} if signed else {"cmd": curve.cmd}
            table = pd.DataFrame({name: getattr(curve, name) for name in CURVE})
            table = table.rename(columns={"shares": "share", "sizes": "size"})
            table.insert(0, "method", method)
            table.insert(1, "signed", signed)
            tables.append(table)
    return pd.concat(tables, ignore_index=True), areas


_AGREEMENT = ["method", "kind", "edges", "pearson", "spearman", *(f"top_{n}" for n in TOP)]


def _agreement(graph: Graph, method: str, estimated: EdgeScores, exact: EdgeScores) -> pd.DataFrame:
    rows = agreement(graph, estimated.mean, exact.mean)
    overlaps = {f"top_{n}": value for n, value in rows[0].pop("top").items()}
    table = pd.DataFrame([{"method": method, **row} for row in rows])
    for n in TOP:
        table[f"top_{n}"] = np.where(
            table["kind"] == "all", overlaps.get(f"top_{n}", np.nan), np.nan
        )
    return table[_AGREEMENT]


def _effects_table(
    graph: Graph, scores: Mapping[str, EdgeScores], in_circuit: np.ndarray, in_acdc: np.ndarray
) -> pd.DataFrame:
    """Return one row per method and edge, in the order of the graph."""
    s, d = np.nonzero(graph.edges)
    sources = np.array(graph.sources, dtype=object)[s]
    destinations = np.array(graph.destinations, dtype=object)[d]
    tables = [
        pd.DataFrame(
            {
                "method": method,
                "source": sources,
                "destination": destinations,
                "kind": kinds_of(graph)[d],
                "score": found.mean[s, d],
                "standard_error": found.error[s, d],
                "pairs": found.pairs,
                "in_circuit": in_circuit[s, d],
                "in_acdc": in_acdc[s, d],
            }
        )
        for method, found in scores.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _paths(parts: EdgeParts, options: Mapping[str, Any]) -> pd.DataFrame:
    """Patch paths into the logits and into the inputs of the nodes whose edges matter most."""
    pairs, tables = parts.found_on, []
    with torch.inference_mode():
        final = pairs.model.forward(pairs.clean.to(pairs.model.device), logits=False)[:, -1]
        full = pairs.metric(final).double().cpu().numpy()
    for receiver in progress(parts.receivers(), desc="paths", unit="receiver"):
        for through, values in parts.paths(receiver).items():
            rows = effect_rows(full - values, full, **options)
            table = pd.DataFrame({"sender": parts.senders(receiver)})
            table["receiver"] = parts.graph.destinations[receiver]
            table["through_mlps"] = through
            table["value"] = values.mean(1)
            for column, found in {"drop": "effect", "low": "low", "high": "high"}.items():
                table[column] = 100 * rows[found]
            table[["p", "p_fdr"]] = rows[["p", "p_fdr"]]
            tables.append(table)
    return pd.concat(tables, ignore_index=True)
