"""How faithful circuits of growing size are, and the areas that sum this up.

faithfulness f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), a ratio of means over pairs; the empty circuit is the
corrupted run, the full one the clean run. Over the share p of edges in the circuit, CPR is the area under f (higher is
better) and CMD the area between f and 1 (lower is better; Mueller et al. 2025, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.edge_runs import EdgeRun
from mechatlas.circuits.edges import prune, random_edges, top
from mechatlas.circuits.metrics import Metric
from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer
from mechatlas.stats.bootstrap import document_weights, interval, replicate

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
REPLICATES = 1000
CONFIDENCE = 0.95


class Faithfulness:
    """Evaluates sets of edges on N pairs.

    Raises
    ------
    UserError
        If the corrupted prompts give a metric as good as the clean ones, so that there is nothing to explain.
    """

    def __init__(
        self, model: Transformer, clean: Tensor, corrupted: Tensor, end: Tensor, metric: Metric
    ):
        self.run = EdgeRun(model, clean, corrupted, end, metric)
        exists = self.run.graph.edges
        self.empty, self.full = self.values(np.stack([np.zeros_like(exists), exists]))
        better = self.full.mean() - self.empty.mean()
        if not (better < 0 if metric.name in ("kl", "rank") else better > 0):
            raise UserError(
                f"metric {metric.name}: its mean is {self.full.mean():.4g} on clean prompts and "
                f"{self.empty.mean():.4g} on corrupted ones; choose prompts that the model solves and a "
                "corruption that breaks them"
            )

    def values(self, circuits: np.ndarray) -> np.ndarray:
        """Return the metric of circuits, bool ``[K, S, D]``, per pair: float64 ``[K, N]``.

        Equal circuits are evaluated once: most random sets prune to the empty one.
        """
        packed = np.packbits(circuits.reshape(len(circuits), -1), axis=1)
        _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        with fast_matmul():
            values = self.run.values(circuits[first])
        return values.double().cpu().numpy()[inverse.ravel()]

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Return the faithfulness of metric values ``[..., N]``, ``[...]``."""
        empty, full = self.empty.mean(), self.full.mean()
        return (values.mean(-1) - empty) / (full - empty)

    def __call__(self, circuits: np.ndarray) -> np.ndarray:
        """Return the faithfulness of circuits, bool ``[K, S, D]``, float64 ``[K]``."""
        return self.shares(self.values(circuits))

    def intervals(
        self, values: np.ndarray, rng: np.random.Generator, confidence: float = CONFIDENCE
    ) -> np.ndarray:
        """Return bootstrap intervals over pairs of the faithfulness of values ``[K, N]``, ``[K, 2]``."""
        weights = document_weights(values.shape[1], REPLICATES, rng)
        sums = (np.stack([row, self.empty, self.full], axis=1) for row in values)
        return np.array([interval(replicate(s, weights, _share), confidence) for s in sums])


@dataclass(frozen=True)
class Curve:
    """Faithfulness over sizes; all arrays have one entry per size.

    Attributes
    ----------
    shares : float64 array
        Requested share of all edges.
    sizes, realised : int64 array
        Edges selected, and edges left after `prune` (those that carry anything).
    faithfulness, low, high : float64 array
        With its bootstrap interval over pairs.
    random, random_low, random_high : float64 array
        Mean and 95 % band over random sets of the same sizes and profile (NaN without any).
    signed : bool
        How edges were ranked, see `edges.rank`.
    """

    shares: np.ndarray
    sizes: np.ndarray
    realised: np.ndarray
    faithfulness: np.ndarray
    low: np.ndarray
    high: np.ndarray
    random: np.ndarray
    random_low: np.ndarray
    random_high: np.ndarray
    signed: bool

    @property
    def cpr(self) -> float:
        """Area under the curve; meant for signed ranking."""
        return area(self.shares, self.faithfulness)

    @property
    def cmd(self) -> float:
        """Area between the curve and 1; meant for ranking by strength."""
        return area(self.shares, np.abs(1 - self.faithfulness))


def trace_curve(
    faithfulness: Faithfulness,
    scores: np.ndarray,
    rng: np.random.Generator,
    *,
    shares: tuple[float, ...] = SHARES,
    signed: bool = False,
    randoms: int = 0,
) -> Curve:
    """Evaluate the most important edges at several sizes.

    Parameters
    ----------
    faithfulness : Faithfulness
        Of the pairs to evaluate on (other pairs than the scores come from, to be fair).
    scores : float array [S, D]
    rng : numpy Generator
        For the intervals and the random sets.
    shares : tuple of float
        Shares of all edges, each in (0, 1].
    signed : bool
        See `edges.rank`.
    randoms : int
        Random sets per size.

    Raises
    ------
    UserError
        If a share lies outside (0, 1].
    """
    graph = faithfulness.run.graph
    for share in shares:
        if not 0 < share <= 1:
            raise UserError(f"shares: {share} is no share of the edges; choose values in (0, 1]")
    sizes = np.array([round(share * graph.n_edges) for share in shares])
    selected = np.stack([top(graph, scores, size, signed=signed) for size in sizes])
    pruned = np.stack([prune(graph, edges) for edges in selected])
    values = faithfulness.values(pruned)
    low, high = faithfulness.intervals(values, rng).T
    bands = np.full((3, len(sizes)), np.nan)
    for i, edges in enumerate(selected):
        if randoms:
            drawn = np.stack(
                [prune(graph, random_edges(graph, edges, rng)) for _ in range(randoms)]
            )
            found = faithfulness(drawn)
            bands[:, i] = found.mean(), *np.quantile(found, [0.025, 0.975])
    return Curve(
        np.array(shares),
        sizes,
        pruned.sum((1, 2)),
        faithfulness.shares(values),
        low,
        high,
        *bands,
        signed,
    )


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Return the area under straight lines through points, on a linear axis."""
    return float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2))


def _share(totals: np.ndarray) -> np.ndarray:
    value, empty, full = totals.T
    return (value - empty) / (full - empty)
