"""ACDC: the circuit that is left when every edge whose removal costs less than a threshold has been removed.

Edges are visited from the logits down (Conmy et al. 2023, algorithm 1); an edge is removed for good if the loss rises
by less than the threshold. The result depends on the order, which some programs leave to the hash of a set; here it is
fixed, and `order_sensitivity` tells how much hangs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from mechatlas.circuits.components import Graph
from mechatlas.circuits.edge_runs import EdgeRun
from mechatlas.circuits.edges import jaccard, stages
from mechatlas.circuits.metrics import Metric
from mechatlas.circuits.removal import BATCH, Removal, remove_edges
from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer

LOWER_IS_BETTER = ("kl", "rank")


def acdc(
    model: Transformer,
    clean: Tensor,
    corrupted: Tensor,
    end: Tensor,
    metric: Metric,
    threshold: float,
    *,
    order: np.ndarray | None = None,
    decided: Mapping[int, bool] | None = None,
    log: Callable[[Mapping[int, bool]], None] | None = None,
    batch: int = BATCH,
) -> Removal:
    """Find a circuit by ACDC, starting at the clean run.

    Parameters
    ----------
    model : Transformer
    clean, corrupted : int64 Tensor [N, T]
    end : int64 Tensor [N]
        Position that is read.
    metric : Metric
        The loss is its mean for ``kl`` and ``rank``, minus its mean otherwise.
    threshold : float
        Largest rise of the loss for which an edge goes.
    order : int array, optional
        Flat indices of all edges; `backward_order` by default.
    decided, log, batch
        As in `remove_edges`.

    Raises
    ------
    UserError
        If the threshold is not positive: at zero rounding would decide.
    """
    if not threshold > 0:
        raise UserError(
            f"threshold: {threshold} must be positive; thresholds of 0.001 to 0.1 are usual"
        )
    sign = 1.0 if metric.name in LOWER_IS_BETTER else -1.0
    run = EdgeRun(model, clean, corrupted, end, metric, full=True)
    edges = (backward_order(run.graph) if order is None else order).tolist()
    return remove_edges(
        run,
        edges,
        lambda values: (sign * values.double().mean(1)).tolist(),
        lambda before, after: after - before < threshold,
        decided=decided,
        log=log,
        batch=batch,
    )


def backward_order(graph: Graph, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return all edges as flat indices, from the logits down, the latest source first.

    With ``rng`` the destinations of each stage (the heads of a layer, say) and the sources of each destination come in
    random order: as valid an order as the fixed one.
    """
    edges = []
    for destinations, _ in reversed(stages(graph)):
        columns = np.arange(destinations.start, destinations.stop)[::-1]
        for column in columns if rng is None else rng.permutation(columns):
            rows = np.arange(graph.visible[column])[::-1]
            rows = rows if rng is None else rng.permutation(rows)
            edges.append(rows * graph.n_destinations + column)
    return np.concatenate(edges)


def order_sensitivity(circuits: list[np.ndarray]) -> dict[str, float | np.ndarray]:
    """Compare circuits found under several orders.

    Returns
    -------
    dict
        ``kept`` ``[S, D]``: share of circuits that have each edge; ``jaccard_mean`` and ``jaccard_min`` over pairs of
        circuits; ``sizes``.
    """
    overlaps = [jaccard(a, b) for i, a in enumerate(circuits) for b in circuits[:i]]
    return {
        "kept": np.mean(circuits, axis=0),
        "sizes": np.array([c.sum() for c in circuits]),
        "jaccard_mean": float(np.mean(overlaps)) if overlaps else 1.0,
        "jaccard_min": float(np.min(overlaps)) if overlaps else 1.0,
    }
