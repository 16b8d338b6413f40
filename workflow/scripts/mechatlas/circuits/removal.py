"""Removing edges one after the other, each decided with those before it: the core of ACDC and of minimisation.

Decisions depend on one another, yet most edges go. So the circuits "without the next 1, 2, ..., K edges" are evaluated
in one batch, and all removals up to the first that is refused are final; the result is that of a loop over edges.
An edge into a node from which no path leads to the logits has no effect at all and goes without being evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mechatlas.circuits.edge_runs import EdgeRun
from mechatlas.circuits.edges import reaches_logits

BATCH = 64  # circuits evaluated at once; fewer after a refusal

Rule = Callable[[float, float], bool]


@dataclass
class Removal:
    """What was decided.

    Attributes
    ----------
    edges : bool array [S, D]
        The circuit that is left.
    decisions : dict of int to bool
        Flat index of an edge to whether it was removed, in order.
    evaluated : int
        Circuits evaluated.
    dead : int
        Edges removed without evaluation.
    """

    edges: np.ndarray
    decisions: dict[int, bool] = field(default_factory=dict)
    evaluated: int = 0
    dead: int = 0


def remove_edges(
    run: EdgeRun,
    order: Sequence[int],
    loss: Callable[[Tensor], list[float]],
    allowed: Rule,
    *,
    decided: Mapping[int, bool] | None = None,
    log: Callable[[Mapping[int, bool]], None] | None = None,
    batch: int = BATCH,
) -> Removal:
    """Try to remove edges from the circuit of a run, in order.

    Parameters
    ----------
    run : EdgeRun
        It ends at the circuit that is left.
    order : sequence of int
        Flat indices of edges.
    loss : callable
        Maps metric values ``[K, N]`` to K numbers.
    allowed : callable
        Whether a removal is kept, given the loss before and after it.
    decided : mapping, optional
        Decisions of an earlier, interrupted call: they are applied, not evaluated again.
    log : callable, optional
        Called with new decisions as soon as they are final.
    batch : int
        Circuits evaluated at once. It does not change the result.
    """
    result = Removal(run.edges.copy(), dict(decided or {}))
    gone = [edge for edge, removed in result.decisions.items() if removed]
    result.edges.flat[gone] = False
    run.move(result.edges)
    before = loss(run.values(result.edges[None]))[0]
    waiting = [e for e in order if result.edges.flat[e] and e not in result.decisions]
    size = min(8, batch)
    while waiting:
        waiting, new = _drop_dead(run, result, waiting)
        after = _try(run, result, waiting[:size], loss)
        for edge, value in zip(waiting, after, strict=False):
            new[edge] = allowed(before, value)
            if not new[edge]:
                break
            before, result.edges.flat[edge] = value, False
        accepted = sum(new.values())
        waiting = [e for e in waiting if e not in new]
        if accepted:
            run.move(result.edges)
        size = (
            min(batch, 2 * size) if new and all(new.values()) else max(1, min(size, 2 * accepted))
        )
        result.decisions |= new
        if log is not None and new:
            log(new)
    return result


def _drop_dead(
    run: EdgeRun, result: Removal, waiting: list[int]
) -> tuple[list[int], dict[int, bool]]:
    useful = reaches_logits(run.graph, result.edges)
    dead = {e: True for e in waiting if not useful[e % run.graph.n_destinations]}
    result.edges.flat[list(dead)] = False
    result.dead += len(dead)
    return [e for e in waiting if e not in dead], dead


def _try(
    run: EdgeRun, result: Removal, edges: Sequence[int], loss: Callable[[Tensor], list[float]]
) -> list[float]:
    """Return the losses without the first 1, 2, ..., K of some edges."""
    if not edges:
        return []
    circuits = np.repeat(result.edges[None], len(edges), axis=0)
    for k, edge in enumerate(edges):
        circuits.reshape(len(edges), -1)[k:, edge] = False
    result.evaluated += len(edges)
    return loss(run.values(circuits))
