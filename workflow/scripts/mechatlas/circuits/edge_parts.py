"""The parts of a study of edges that take long and do not wait for one another, so that jobs can share them.

A part is an order of ACDC, the search for the smallest circuit, a curve, the paths into one receiver, or the exact
effects of the edges into one layer. Each gives the same digits wherever it runs, and whatever else ran there before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.acdc import acdc, backward_order
from mechatlas.circuits.attribution import attribute_edges
from mechatlas.circuits.batches import Batch
from mechatlas.circuits.components import Graph
from mechatlas.circuits.curves import Curve, Faithfulness, trace_curve
from mechatlas.circuits.edges import EdgeScores, feeds
from mechatlas.circuits.exact_edges import each_pair
from mechatlas.circuits.metrics import Metric, make_metric
from mechatlas.circuits.path_patching import PathSweep
from mechatlas.circuits.resume import Parts, StepLog, Store
from mechatlas.circuits.search import Found, smallest_circuit
from mechatlas.circuits.steps import Steps
from mechatlas.circuits.task_data import TaskData, arrays_of
from mechatlas.io import progress, rng_for
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.pairs import PairBatch

EXACT = "exact"
#: Settings that decide what `EdgeSteps` keeps.
KEPT = ("metric", "exact_prompts", "acdc_threshold", "acdc_prompts")


class EdgeSteps(Steps):
    """Where the exact effects of finished pairs and the decisions of ACDC are kept.

    Attributes
    ----------
    parts_facts : dict
        What decides all parts, of which other settings do.
    """

    def __init__(self, folder: str | Path, data: TaskData, settings: Mapping[str, Any], seed: int):
        deciding = {key: settings[key] for key in KEPT} | {"seed": seed}
        super().__init__(folder, data, deciding, "circuits/acdc.py", "circuits/exact_edges.py")
        all_settings = {"edges": dict(settings), "seed": seed}
        self.parts_facts = Steps(folder, data, all_settings, "circuits/edge_parts.py").facts


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


class EdgeParts:
    """The parts of a task, computed when they are asked for.

    Parameters
    ----------
    data : TaskData
    settings : mapping
        ``circuits.edges`` of the config.
    seed : int
    log : callable
        Gives the log of an order of ACDC, from which an interrupted one continues.
    kept : Parts
        Keeps the exact effects of finished pairs.
    done : Store
        Gives the parts that are done, and takes those that are not.

    Attributes
    ----------
    found_on : Pairs
        All discovery prompts.
    few : Pairs
        Those on which exact effects are computed.
    search, judge : Faithfulness
        On discovery and on held-out prompts.
    """

    def __init__(
        self,
        data: TaskData,
        settings: Mapping[str, Any],
        *,
        seed: int,
        log: Callable[[str], StepLog],
        kept: Parts,
        done: Store,
    ):
        self.data, self.settings, self.seed = data, settings, seed
        self.log, self.kept, self.done = log, kept, done
        self.graph = Graph.of(data.model.config)
        self.scores = cache(self._scores)

    @cached_property
    def found_on(self) -> Pairs:
        return self._pairs(self.data.discovery)

    @cached_property
    def few(self) -> Pairs:
        return self._pairs(spread(self.data.discovery, self.settings["exact_prompts"]))

    @cached_property
    def search(self) -> Faithfulness:
        return Faithfulness(*self.found_on.arguments)

    @cached_property
    def judge(self) -> Faithfulness:
        return Faithfulness(*self._pairs(self.data.held_out).arguments)

    @property
    def ranking(self) -> np.ndarray:
        """Scores by which edges are ranked, ``[S, D]``."""
        return self.scores(self.settings["rank_by"]).mean

    def independent(self) -> list[Callable[[], Any]]:
        """Return the parts that wait for no other, those that take longest first.

        What takes exact effects of all layers is not among them.
        """
        s, layers = self.settings, self.graph.n_layers
        parts: list[Callable[[], Any]] = [
            partial(self.acdc, number) for number in range(s["acdc_orders"])
        ]
        ranked = s["rank_by"] != EXACT
        if ranked:
            parts.append(self.smallest)
        parts += [partial(self.curve, m, signed) for signed in (False, True) for m in s["methods"]]
        if ranked:
            parts += [partial(self.paths, receiver) for receiver in self.receivers()]
        if s["exact_prompts"]:
            parts += [partial(self.into_layer, layer) for layer in range(layers)]
        return parts

    def attribute(self, pairs: Pairs, method: str) -> EdgeScores:
        """Estimate the effect of every edge."""
        return attribute_edges(
            *pairs.arguments,
            method=method,
            steps=self.settings["steps"],
            rule=self.settings["rule"],
        )

    def into_layer(self, layer: int) -> np.ndarray:
        """Return the exact effects of the edges into one layer, ``[N, S, destinations]``."""

        def pair(n: int) -> dict[str, np.ndarray]:
            model, *arrays, metric = self.few.arguments
            one = slice(n, n + 1)
            found = each_pair(
                model, *(x[one] for x in arrays), metric.select(one), layers=range(layer, layer + 1)
            )
            return {"effect": next(found)}

        def pairs() -> dict[str, np.ndarray]:
            numbers = progress(
                range(len(self.few.clean)), desc=f"exact edges, layer {layer}", unit="pair"
            )
            effects = [
                self.kept.get(f"exact-L{layer}-{n}", partial(pair, n))["effect"] for n in numbers
            ]
            return {"effect": np.stack(effects)}

        return self.done.get(f"exact-L{layer}", pairs)["effect"]

    def acdc(self, number: int) -> np.ndarray:
        """Return the edges that ACDC leaves under one order, the fixed one or a random one, bool ``[S, D]``."""

        def run() -> dict[str, np.ndarray]:
            s = self.settings
            pairs = self._pairs(spread(self.data.discovery, s["acdc_prompts"]))
            rng = rng_for(self.seed, "acdc order", number) if number else None
            steps = self.log(f"acdc-{number}")
            decided = {int(edge): gone for step in steps.decided for edge, gone in step.items()}
            found = acdc(
                *pairs.arguments, s["acdc_threshold"],
                order=backward_order(self.graph, rng), decided=decided,
                log=lambda new: steps({str(e): bool(gone) for e, gone in new.items()}),
            )  # fmt: skip
            return {"edges": found.edges}

        return self.done.get(f"acdc-{number}", run)["edges"]

    def smallest(self) -> Found:
        """Return the smallest faithful circuit."""

        def run() -> dict[str, np.ndarray]:
            s = self.settings
            # Of its own, as the search moves it, and the last digits of later values depend on where it is.
            faithfulness = Faithfulness(*self.found_on.arguments)
            found = smallest_circuit(
                faithfulness, self.ranking, s["target"], minimise=s["minimise"]
            )
            tried = {"size": list(found.sizes), "of size": list(found.sizes.values())}
            rest = {key: [value] for key, value in vars(found).items() if key in NUMBERS}
            return {"edges": found.edges} | {k: np.array(v) for k, v in (tried | rest).items()}

        part = self.done.get("smallest", run)
        numbers = {key: part[key][0].item() for key in NUMBERS}
        sizes = dict(zip(part["size"].tolist(), part["of size"].tolist(), strict=True))
        return Found(part["edges"], sizes=sizes, **numbers)

    def curve(self, method: str, signed: bool) -> Curve:
        """Return the curve of a method, ranked by strength or (signed) by helpfulness."""

        def run() -> dict[str, np.ndarray]:
            s = self.settings
            with_random = method == s["rank_by"] and not signed
            curve = trace_curve(
                self.judge, self.scores(method).mean,
                rng_for(self.seed, "curve", method, int(signed)),
                shares=tuple(s["shares"]), signed=signed,
                randoms=s["curve_random_sets"] if with_random else 0,
            )  # fmt: skip
            return {key: x for key, x in vars(curve).items() if key != "signed"}

        name = f"curve-{method}-{'signed' if signed else 'strength'}"
        return Curve(**self.done.get(name, run), signed=signed)

    def receivers(self) -> list[int]:
        """Return the logits and the inputs of the nodes whose edges matter most, as destinations."""
        graph, strength = self.graph, np.abs(self.ranking[1:].sum(1))
        strongest = 1 + np.argsort(-strength, kind="stable")[: self.settings["path_receivers"]]
        inputs = np.flatnonzero(feeds(graph)[:, strongest].any(1))
        return [graph.n_destinations - 1, *inputs.tolist()]

    def senders(self, receiver: int) -> list[str]:
        """Return the sources that a destination reads."""
        return list(self.graph.sources[: self.graph.visible[receiver]])

    def paths(self, receiver: int) -> dict[bool, np.ndarray]:
        """Return the metric with each path into a destination patched, through MLPs or not, ``[senders, N]``."""
        name = self.graph.destinations[receiver]

        def run() -> dict[str, np.ndarray]:
            found = {
                key: self._sweep(self.senders(receiver), [name], through_mlps=through)
                for through, key in THROUGH.items()
            }
            return {key: values.double().cpu().numpy() for key, values in found.items()}

        part = self.done.get(f"paths-{name}", run)
        return {through: part[key] for through, key in THROUGH.items()}

    def _scores(self, method: str) -> EdgeScores:
        if method != EXACT:
            return self.attribute(self.found_on, method)
        effects = [self.into_layer(layer) for layer in range(self.graph.n_layers)]
        return EdgeScores.of(self.graph, np.concatenate(effects, axis=2))

    @cached_property
    def _sweep(self) -> PathSweep:
        return PathSweep(*self.found_on.arguments)

    def _pairs(self, batch: PairBatch) -> Pairs:
        return Pairs.of(self.data.model, batch, self.settings["metric"])


NUMBERS = ("faithfulness", "ranked", "evaluated")
THROUGH = {True: "through", False: "direct"}


def trace_parts(
    data: TaskData,
    settings: Mapping[str, Any],
    steps: EdgeSteps,
    batch: Batch,
    place: tuple[int, int],
    *,
    seed: int,
) -> None:
    """Do the parts of one job, dealt out in turn, and keep them in ``batch``.

    ``place`` is the number of the job, and how many there are.
    """
    parts = EdgeParts(data, settings, seed=seed, log=steps.log, kept=steps.parts, done=batch)
    number, jobs = place
    for part in parts.independent()[number::jobs]:
        part()


def spread(batch: PairBatch, count: int) -> PairBatch:
    """Return ``count`` prompts spread evenly over a batch."""
    count = min(count, len(batch))
    return batch.select(np.linspace(0, len(batch) - 1, count).round().astype(int))
