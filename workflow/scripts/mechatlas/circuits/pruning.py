"""Pruning a model to the heads and MLPs that a task needs.

The greedy procedure of Lan, Torr, Barez 2023 (arXiv 2311.04131), section 3.2: passes over all nodes from the last layer
to the first and back, each of which drops a node for good if the score without it stays within the threshold, until a
pass drops nothing. The result depends on the order of the nodes (`mechatlas.circuits.least_harmful` has none). Every
score is recorded, and a run continues from the records of an interrupted one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.components import Graph
from mechatlas.circuits.metrics import require_solved
from mechatlas.io import UserError

Record = Mapping[str, Any]

logger = logging.getLogger("mechatlas")


@dataclass(frozen=True)
class PruneSettings:
    """How far to prune.

    Attributes
    ----------
    threshold : float
        Percent of the full model's score that may be lost, between 0 and 100.
    one_iter : bool
        Stop after one pass back and one forth.
    keep : tuple of str
        Nodes that stay, such as ``L11.mlp``.

    Raises
    ------
    UserError
        If the threshold is out of range.
    """

    threshold: float = 20.0
    one_iter: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 100:
            raise UserError(
                f"threshold: {self.threshold} is not a percentage between 0 and 100; 20 keeps 80 % of the score"
            )


@dataclass
class Pruned:
    """A pruned circuit.

    Attributes
    ----------
    keep : bool Tensor [L, H + 1]
    score : float
        Percent of the full model's mean metric.
    records : list of mapping
        One per candidate (or round), in order.
    evaluated : int
        Sets of nodes that were run.
    """

    keep: Tensor
    score: float = 100.0
    records: list[Record] = field(default_factory=list)
    evaluated: int = 0


class Scorer:
    """Scores of sets of nodes in percent of the full model's mean metric: 100 mean F(C) / mean F(M)."""

    def __init__(self, ablation: Ablation):
        self.ablation = ablation
        full = ablation.values(ablation.full[None])[0]
        require_solved(full, "pruning")
        self.full = float(full.double().mean())
        self.evaluated = 0

    def __call__(self, keeps: Tensor) -> list[float]:
        """Return the scores of sets of nodes, bool ``[V, L, H + 1]``."""
        self.evaluated += len(keeps)
        return (100 * self.ablation.values(keeps).double().mean(1) / self.full).tolist()


def prune(
    ablation: Ablation,
    settings: PruneSettings,
    *,
    decided: Iterable[Record] = (),
    log: Callable[[Record], None] | None = None,
) -> Pruned:
    """Prune pass by pass.

    Parameters
    ----------
    ablation : Ablation
        Task and model.
    settings : PruneSettings
    decided : iterable of mapping
        Records of an interrupted run, which are not evaluated again.
    log : callable, optional
        Called with every new record: ``pass``, ``direction``, ``node``, ``score`` (without the node), ``removed``.

    Raises
    ------
    UserError
        If the model does not do the task, a kept node does not exist, or ``decided`` belongs to another run.
    """
    score, graph = Scorer(ablation), Graph.of(ablation.model.config)
    run = _Passes(score, graph, settings, deque(decided), log)
    fixed = graph.node_set(settings.keep)
    number = 0
    while True:
        before = int(run.result.keep.sum())
        run.one(number, [n for n in _order(graph, number) if not fixed.flat[n]])
        logger.info(
            "pruning: pass %d leaves %d nodes at %.1f %%",
            number, int(run.result.keep.sum()), run.result.score,
        )  # fmt: skip
        number += 1
        if int(run.result.keep.sum()) == before or (settings.one_iter and number == 2):
            break
    run.result.evaluated = score.evaluated
    return run.result


class _Passes:
    """The state of `prune`."""

    def __init__(
        self,
        score: Scorer,
        graph: Graph,
        settings: PruneSettings,
        decided: deque[Record],
        log: Callable[[Record], None] | None,
    ):
        self.score, self.graph, self.log = score, graph, log
        self.floor = 100 - settings.threshold
        self.decided = decided
        self.result = Pruned(score.ablation.full.clone())
        self.drops = np.zeros(self.result.keep.numel())

    def one(self, number: int, order: Sequence[int]) -> None:
        """Try every kept node of an order once."""
        flat = self.result.keep.flatten()
        waiting = [node for node in order if flat[node]]
        direction = ("backward", "forward")[number % 2]
        while waiting and self.decided:
            self._replay(number, waiting.pop(0))
        size = 1
        while waiting:
            batch = waiting[:size]
            done = self._try(number, direction, batch)
            waiting = waiting[done:]
            # Guess further ahead as long as guesses come true.
            size = (
                min(self.score.ablation.at_once, 2 * size) if done == len(batch) else max(1, done)
            )

    def _try(self, number: int, direction: str, batch: Sequence[int]) -> int:
        """Decide the first nodes of a batch, as many as were guessed right (at least one).

        Later candidates are run before earlier ones are decided, in the set that a guess of those decisions leaves; a
        score counts only if all guesses before it came true, so the result is that of one candidate at a time.
        """
        current, guess = self.result.keep.flatten(), []
        score, sets = self.result.score, []
        for node in batch:
            without = current.clone()
            without[node] = False
            sets.append(without)
            guess.append(score - self.drops[node] > self.floor)
            if guess[-1]:
                current, score = without, score - self.drops[node]
        self.score.ablation.rebase(self.result.keep)
        scores = self.score(torch.stack(sets).view(-1, *self.result.keep.shape))
        for done, (node, value) in enumerate(zip(batch, scores, strict=True), 1):
            removed = value > self.floor
            self.drops[node] = self.result.score - value
            record = {"pass": number, "direction": direction, "node": self.graph.nodes[node]}
            self._apply(node, {**record, "score": value, "removed": removed})
            if self.log is not None:
                self.log(self.result.records[-1])
            if removed != guess[done - 1]:
                break
        return done

    def _replay(self, number: int, node: int) -> None:
        record = self.decided.popleft()
        if (record.get("pass"), record.get("node")) != (number, self.graph.nodes[node]):
            raise UserError(
                f"pruning: the log of an earlier run has {record.get('node')} where {self.graph.nodes[node]} is next; "
                "it belongs to other settings, delete it"
            )
        self.drops[node] = self.result.score - record["score"]
        self._apply(node, record)

    def _apply(self, node: int, record: Record) -> None:
        self.result.records.append(record)
        if record["removed"]:
            keep = self.result.keep.clone()
            keep.view(-1)[node] = False
            self.result.keep, self.result.score = keep, record["score"]


def _order(graph: Graph, number: int) -> list[int]:
    """Return the order of a pass: even ones from the last layer to the first, MLP before heads; odd ones reversed."""
    layers, width = graph.shape
    heads, mlp = list(range(width - 1)), [width - 1]
    if number % 2:
        return [layer * width + n for layer in range(layers) for n in heads + mlp]
    return [layer * width + n for layer in reversed(range(layers)) for n in mlp + heads]
