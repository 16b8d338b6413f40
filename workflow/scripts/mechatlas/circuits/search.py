"""The smallest set of edges that keeps a wanted faithfulness.

Edges are ranked (by attribution, say). Bisection finds how many of the best suffice, several sizes per round; then
edges are removed one by one, the weakest first, as long as the rest stays faithful by exact evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.curves import Faithfulness
from mechatlas.circuits.edges import prune, rank, top
from mechatlas.circuits.removal import remove_edges
from mechatlas.io import UserError

PROBES = 7  # sizes evaluated per round of the bisection


@dataclass(frozen=True)
class Found:
    """A circuit and how it was found.

    Attributes
    ----------
    edges : bool array [S, D]
    faithfulness : float
        On the pairs of the search.
    ranked : int
        How many of the best-ranked edges sufficed.
    sizes : dict of int to float
        Faithfulness of every size that the bisection tried.
    evaluated : int
        Circuits evaluated by the minimisation.
    """

    edges: np.ndarray
    faithfulness: float
    ranked: int
    sizes: dict[int, float]
    evaluated: int


def smallest_circuit(
    faithfulness: Faithfulness,
    scores: np.ndarray,
    target: float,
    *,
    signed: bool = False,
    minimise: bool = True,
) -> Found:
    """Find a small set of edges with at least a wanted faithfulness.

    Parameters
    ----------
    faithfulness : Faithfulness
        Of the pairs to search on.
    scores : float array [S, D]
    target : float
        Wanted faithfulness, in (0, 1].
    signed : bool
        See `edges.rank`.
    minimise : bool
        Remove edges one by one in the end.

    Raises
    ------
    UserError
        If the target lies outside (0, 1].
    """
    if not 0 < target <= 1:
        raise UserError(
            f"target: a faithfulness of {target} cannot be searched for; choose one in (0, 1]"
        )
    graph = faithfulness.run.graph
    sizes = _bisect(faithfulness, scores, target, signed)
    ranked = min(n for n, value in sizes.items() if value >= target or n == graph.n_edges)
    edges, evaluated = prune(graph, top(graph, scores, ranked, signed=signed)), 0
    if minimise:
        run = faithfulness.run
        run.move(edges)
        weakest_first = rank(graph, scores, signed=signed)[::-1].tolist()
        with fast_matmul():
            removal = remove_edges(
                run,
                weakest_first,
                lambda values: (-faithfulness.shares(values.double().cpu().numpy())).tolist(),
                lambda _, after: -after >= target,
            )
        edges, evaluated = prune(graph, removal.edges), removal.evaluated
    return Found(edges, float(faithfulness(edges[None])[0]), ranked, sizes, evaluated)


def _bisect(
    faithfulness: Faithfulness, scores: np.ndarray, target: float, signed: bool
) -> dict[int, float]:
    """Return the faithfulness of the sizes tried; between the last two, one edge apart, the target is reached."""
    graph = faithfulness.run.graph
    low, high = 0, graph.n_edges
    found = {high: 1.0}
    while high - low > 1:
        sizes = np.unique(np.linspace(low, high, PROBES + 2).round().astype(int)[1:-1])
        sizes = sizes[(sizes > low) & (sizes < high)]
        circuits = np.stack([prune(graph, top(graph, scores, n, signed=signed)) for n in sizes])
        found |= dict(zip(sizes.tolist(), faithfulness(circuits).tolist(), strict=True))
        reached = [n for n in sizes.tolist() if found[n] >= target]
        high = min(reached, default=high)
        low = max((n for n in sizes.tolist() if n < high), default=low)
    return found
