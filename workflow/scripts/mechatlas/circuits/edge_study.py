"""Edges of a task from end to end: scores by every method, the smallest faithful circuit, ACDC, curves, paths.

Edges are scored and circuits found on discovery prompts; curves, controls and final faithfulness use held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits import backend
from mechatlas.circuits.acdc import acdc, backward_order, order_sensitivity
from mechatlas.circuits.agreement import TOP, agreement
from mechatlas.circuits.attribution import attribute_edges
from mechatlas.circuits.circuit_file import Circuit, make_circuit
from mechatlas.circuits.components import Graph
from mechatlas.circuits.curves import Faithfulness, trace_curve
from mechatlas.circuits.edges import (
    EdgeScores,
    edge_names,
    edge_set,
    feeds,
    kinds_of,
    nodes_of,
    prune,
    random_edges,
)
from mechatlas.circuits.effects import effect_rows
from mechatlas.circuits.exact_edges import each_pair
from mechatlas.circuits.metrics import Metric, make_metric
from mechatlas.circuits.path_patching import PathSweep
from mechatlas.circuits.resume import Parts, StepLog
from mechatlas.circuits.search import smallest_circuit
from mechatlas.circuits.task_data import TaskData, arrays_of
from mechatlas.io import progress, rng_for
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.pairs import PairBatch

EXACT = "exact"
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


@dataclass(frozen=True)
class Pairs:
    """Prompt pairs as the methods for edges take them."""

    model: Transformer
    clean: Tensor
    corrupted: Tensor
    end: Tensor
    metric: Metric

    @classmethod
    def of(cls, model: Transformer, batch: PairBatch, metric: str) -> Pairs:
        """Prepare the prompts of a batch."""
        clean, corrupted, answers, wrong = arrays_of(batch)
        final = None
        if metric == "kl":
            with torch.inference_mode():
                final = model.forward(clean.to(model.device), logits=False)[:, -1]
        end = torch.full((len(clean),), clean.shape[1] - 1)
        return cls(model, clean, corrupted, end, make_metric(metric, model, answers, wrong, final))

    @property
    def arguments(self) -> tuple:
        return self.model, self.clean, self.corrupted, self.end, self.metric


def study_edges(
    data: TaskData,
    settings: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    bootstrap: int,
    log: Callable[[str], StepLog],
    parts: Parts,
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

    Raises
    ------
    UserError
        If the corrupted prompts give a metric as good as the clean ones.
    """
    graph, metric = Graph.of(data.model.config), settings["metric"]
    found_on = Pairs.of(data.model, data.discovery, metric)
    scores = {m: _attribute(found_on, m, settings) for m in settings["methods"]}
    agreements: list[pd.DataFrame] = []
    if settings["exact_prompts"]:
        few = Pairs.of(data.model, _spread(data.discovery, settings["exact_prompts"]), metric)
        scores[EXACT] = _exact(few, graph, parts)
        agreements = [
            _agreement(graph, method, _attribute(few, method, settings), scores[EXACT])
            for method in settings["methods"]
        ]
    ranking = scores[settings["rank_by"]].mean
    judge = Faithfulness(*Pairs.of(data.model, data.held_out, metric).arguments)
    search = Faithfulness(*found_on.arguments)
    judged = _Judge(data, settings, search, judge, seed, confidence)
    circuit = judged.smallest(ranking, scores)
    found = judged.acdc(log)
    in_both = [edge_set(graph, c.edges or ()) for c in (circuit, found)]
    tables = {
        "effects": _effects_table(graph, scores, *in_both),
        "curve": judged.curves,
        "agreement": pd.concat(agreements) if agreements else pd.DataFrame(columns=_AGREEMENT),
        "paths": _paths(found_on, graph, ranking, settings["path_receivers"], {
            "seed": seed, "confidence": confidence, "replicates": bootstrap,
        }),
    }  # fmt: skip
    return EdgeStudy(circuit, found, tables)


class _Judge:
    """Circuits of edges and how faithful they are."""

    def __init__(
        self,
        data: TaskData,
        settings: Mapping[str, Any],
        search: Faithfulness,
        judge: Faithfulness,
        seed: int,
        confidence: float,
    ):
        self.data, self.settings, self.search, self.judge = data, settings, search, judge
        self.seed, self.confidence, self.graph = seed, confidence, search.run.graph
        self.curves = pd.DataFrame()

    def smallest(self, ranking: np.ndarray, scores: Mapping[str, EdgeScores]) -> Circuit:
        """Search for the smallest circuit; trace the curves of all methods."""
        s = self.settings
        found = smallest_circuit(self.search, ranking, s["target"], minimise=s["minimise"])
        self.curves, areas = self._curves(scores)
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

    def acdc(self, log: Callable[[str], StepLog]) -> Circuit:
        """Run ACDC under several orders; the first, fixed one gives the circuit."""
        s = self.settings
        few = _spread(self.data.discovery, s["acdc_prompts"])
        pairs = Pairs.of(self.data.model, few, s["metric"])
        found = []
        for number in progress(range(s["acdc_orders"]), desc="acdc", unit="order"):
            rng = rng_for(self.seed, "acdc order", number) if number else None
            steps = log(f"acdc-{number}")
            decided = {int(edge): gone for step in steps.decided for edge, gone in step.items()}
            found.append(
                acdc(
                    *pairs.arguments, s["acdc_threshold"],
                    order=backward_order(self.graph, rng), decided=decided,
                    log=lambda new, steps=steps: steps({str(e): bool(gone) for e, gone in new.items()}),
                )
            )  # fmt: skip
        if not found:
            none = np.zeros_like(self.graph.edges)
            return self._circuit(none, "edges, acdc", {"orders": {"count": 0}})
        first, orders = found[0], order_sensitivity([x.edges for x in found])
        edges = prune(self.graph, first.edges)
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
        return make_circuit(
            self.data.model,
            torch.from_numpy(nodes_of(self.graph, edges)),
            task=self.data.task,
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
        self, scores: Mapping[str, EdgeScores]
    ) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
        """Return curves of every method, ranked by strength and by helpfulness, and their areas."""
        tables, areas = [], {}
        for method, found in scores.items():
            areas[method] = {}
            for signed in (False, True):
                rng = rng_for(self.seed, "curve", method, int(signed))
                with_random = method == self.settings["rank_by"] and not signed
                curve = trace_curve(
                    self.judge, found.mean, rng,
                    shares=tuple(self.settings["shares"]), signed=signed,
                    randoms=self.settings["curve_random_sets"] if with_random else 0,
                )  # fmt: skip
                areas[method] |= {"cpr": curve.cpr} if signed else {"cmd": curve.cmd}
                table = pd.DataFrame({name: getattr(curve, name) for name in CURVE})
                table = table.rename(columns={"shares": "share", "sizes": "size"})
                table.insert(0, "method", method)
                table.insert(1, "signed", signed)
                tables.append(table)
        return pd.concat(tables, ignore_index=True), areas


def _attribute(pairs: Pairs, method: str, settings: Mapping[str, Any]) -> EdgeScores:
    return attribute_edges(
        *pairs.arguments, method=method, steps=settings["steps"], rule=settings["rule"]
    )


def _exact(pairs: Pairs, graph: Graph, parts: Parts) -> EdgeScores:
    """Return exact effects; those of finished pairs are read from ``parts``."""
    effects = []
    for n in progress(range(len(pairs.clean)), desc="exact edges", unit="pair"):
        one = slice(n, n + 1)

        def compute(one: slice = one) -> dict[str, np.ndarray]:
            arrays = (pairs.clean[one], pairs.corrupted[one], pairs.end[one])
            return {"effect": next(each_pair(pairs.model, *arrays, pairs.metric.select(one)))}

        effects.append(parts.get(f"exact-{n}", compute)["effect"])
    return EdgeScores.of(graph, np.stack(effects))


def _spread(batch: PairBatch, count: int) -> PairBatch:
    """Return ``count`` prompts spread evenly over a batch."""
    count = min(count, len(batch))
    return batch.select(np.linspace(0, len(batch) - 1, count).round().astype(int))


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


def _paths(
    pairs: Pairs, graph: Graph, ranking: np.ndarray, count: int, options: Mapping[str, Any]
) -> pd.DataFrame:
    """Patch paths into the logits and into the inputs of the nodes whose edges matter most."""
    with torch.inference_mode():
        final = pairs.model.forward(pairs.clean.to(pairs.model.device), logits=False)[:, -1]
        full = pairs.metric(final).double().cpu().numpy()
    strength = np.abs(ranking[1:].sum(1))
    strongest = 1 + np.argsort(-strength, kind="stable")[:count]
    receivers = [graph.n_destinations - 1, *np.flatnonzero(feeds(graph)[:, strongest].any(1))]
    tables, sweep = [], PathSweep(*pairs.arguments)
    for receiver in progress(receivers, desc="paths", unit="receiver"):
        name = graph.destinations[receiver]
        senders = list(graph.sources[: graph.visible[receiver]])
        for through in (True, False):
            values = sweep(senders, [name], through_mlps=through).double().cpu().numpy()
            rows = effect_rows(full - values, full, **options)
            table = pd.DataFrame({"sender": senders, "receiver": name, "through_mlps": through})
            table["value"] = values.mean(1)
            for column, found in {"drop": "effect", "low": "low", "high": "high"}.items():
                table[column] = 100 * rows[found]
            table[["p", "p_fdr"]] = rows[["p", "p_fdr"]]
            tables.append(table)
    return pd.concat(tables, ignore_index=True)
