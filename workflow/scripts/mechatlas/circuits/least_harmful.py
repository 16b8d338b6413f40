"""Pruning without an order of nodes: whichever node costs least goes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation, without_each
from mechatlas.circuits.components import Graph
from mechatlas.circuits.pruning import Pruned, PruneSettings, Record, Scorer


def prune_least_harmful(
    ablation: Ablation,
    settings: PruneSettings,
    *,
    step: int = 1,
    decided: Iterable[Record] = (),
    log: Callable[[Record], None] | None = None,
) -> Pruned:
    """Remove, round by round, the node without which the score is highest, while it stays within the threshold.

    The result does not depend on the order of nodes (equal scores: the first node of the first layer goes).

    Parameters
    ----------
    ablation, settings, decided, log
        As in `prune` (``one_iter`` has no meaning here). A record has ``round``, ``score``, ``removed`` (names) and
        ``scores`` (of all candidates by name).
    step : int
        Nodes that go per round; if the ``step`` best together cost too much, only half as many go from then on.
    """
    score, graph = Scorer(ablation), Graph.of(ablation.model.config)
    fixed = torch.from_numpy(graph.node_set(settings.keep)).flatten()
    result, floor = Pruned(ablation.full.clone()), 100 - settings.threshold
    for record in decided:
        result.keep[torch.from_numpy(graph.node_set(record["removed"]))] = False
        result.score, step = record["score"], record["step"]
        result.records.append(record)
    while True:
        nodes = (result.keep.flatten() & ~fixed).nonzero()[:, 0]
        if not len(nodes):
            break
        ablation.rebase(result.keep)
        scores = score(without_each(result.keep, nodes))
        best = nodes[np.argsort(-np.array(scores), kind="stable")[:step].copy()]
        keep, value, best = _largest_step(score, result.keep, best, floor)
        if not len(best):
            break
        step = len(best)
        result.keep, result.score = keep, value
        names = [graph.nodes[n] for n in best.tolist()]
        by_name = dict(zip([graph.nodes[n] for n in nodes.tolist()], scores, strict=True))
        record = {
            "round": len(result.records),
            "score": value,
            "removed": names,
            "step": step,
            "scores": by_name,
        }
        result.records.append(record)
        if log is not None:
            log(record)
    result.evaluated = score.evaluated
    return result


def _largest_step(
    score: Scorer, keep: Tensor, best: Tensor, floor: float
) -> tuple[Tensor, float, Tensor]:
    """Return the set without the best nodes, its score, and the nodes: as many as the floor allows (maybe none)."""
    while len(best):
        without = keep.flatten().clone()
        without[best] = False
        without = without.view_as(keep)
        value = score(without[None])[0]
        if value > floor:
            return without, value, best
        best = best[: len(best) // 2]
    return keep, floor, best
