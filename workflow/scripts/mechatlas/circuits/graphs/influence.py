"""Influence on the targets, pruning, and how much of a graph its errors leave open.

With |A| the absolute edges, rows divided by their sums, and p the weights of the targets::

    I = sum_{k >= 1} p |A|^k                                                        (influence)
    replacement  = I_token / (I_token + I_error)
    completeness = sum_i (1 - share of errors in row i) (I_i + p_i) / sum_i (I_i + p_i)

(Ameisen et al. 2025; circuit-tracer). The compatible completeness counts nodes without inputs, errors among them, as
explained, so that a graph whose logit is fed by an error alone gets 1/2. The corrected one sums over nodes with inputs
only, and counts what was discarded as unexplained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from mechatlas.circuits.graphs.graph import (
    ERROR,
    FEATURE,
    LOGIT,
    POSITION,
    TOKEN,
    AttributionGraph,
)
from mechatlas.io import UserError

TINY = 1e-10


@dataclass(frozen=True)
class Pruned:
    """What is kept: ``nodes`` bool [M], ``edges`` csr_array [M, M] of the kept edges; ``influence`` [M] of all nodes,
    ``node_share`` [M] (sum of influence down to the node, in descending order, as a share of all)."""

    nodes: np.ndarray
    edges: csr_array
    influence: np.ndarray
    node_share: np.ndarray


def influence(
    edges: csr_array, weights: np.ndarray, outside: np.ndarray | None = None
) -> np.ndarray:
    """Return the influence of every node, [M].

    Parameters
    ----------
    edges : csr_array [M, M]
        Rows are targets.
    weights : float [M]
    outside : float [M], optional
        Absolute sums of edges that are not in the matrix but count in the rows' sums.
    """
    return _influence(normalised(edges, outside), weights)


def normalised(edges: csr_array, outside: np.ndarray | None = None) -> csr_array:
    """Return absolute edges with rows divided by their sums; the order of the entries stays."""
    edges = edges.tocoo()
    sizes = np.abs(edges.data.astype(np.float64))
    sums = np.bincount(edges.row, sizes, minlength=edges.shape[0])
    sums = sums + (0 if outside is None else outside)
    shares = sizes / np.maximum(sums, TINY)[edges.row]
    return csr_array((shares, (edges.row, edges.col)), shape=edges.shape)


def _influence(shares: csr_array, weights: np.ndarray) -> np.ndarray:
    backward = shares.T.tocsr()
    total = np.zeros(len(weights))
    step = backward @ weights
    # The graph has no cycles, so there are no paths longer than its number of nodes.
    for _ in range(len(weights) + 1):
        if not step.any():
            return total
        total += step
        step = backward @ step
    raise ValueError("the graph has a cycle")


def prune(
    graph: AttributionGraph, *, node_threshold: float = 0.8, edge_threshold: float = 0.98
) -> Pruned:
    """Keep the nodes, then the edges, that carry most of the influence.

    Nodes are kept in descending order of influence until they hold ``node_threshold`` of it, edges likewise in the
    graph of these nodes, by the share of the target's row times the target's influence. Then features and errors
    without outgoing edges and features without incoming ones go. Tokens and targets always stay.

    Raises
    ------
    UserError
        If a threshold is not in (0, 1].
    """
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}; it must be above 0 and at most 1")
    weights = graph.target_weights
    score = influence(graph.edges, weights)
    fixed = graph.of_kind(TOKEN, LOGIT)
    nodes = fixed | (score >= _cut(score, node_threshold))
    edges = _chosen(graph.edges, lambda edges: nodes[edges.row] & nodes[edges.col])
    shares = normalised(edges)
    by_target = _influence(shares, weights) + weights
    edges, score_of = edges.tocoo(), shares.tocoo().data
    edge_scores = score_of * by_target[edges.row]
    kept = edge_scores >= _cut(edge_scores, edge_threshold)
    nodes, edges = _drop_loose(graph, nodes, _chosen(edges, lambda _: kept))
    return Pruned(nodes, edges, score, _share(score))


def scores(graph: AttributionGraph) -> dict[str, float]:
    """Return replacement and completeness, each compatible and corrected; NaN where nothing has influence.

    ``replacement`` and ``completeness`` are computed as circuit-tracer does, without the nodes that it lacks. The
    corrected replacement compares tokens and positions with errors and what was discarded, in the whole graph.
    """
    shared = graph.shared()
    weights = shared.target_weights
    shares = normalised(shared.edges)
    score = _influence(shares, weights)
    tokens, errors = (float(score[shared.of_kind(kind)].sum()) for kind in (TOKEN, ERROR))
    explained = 1 - np.asarray(shares[:, shared.of_kind(ERROR)].sum(1)).ravel()
    found = {
        "replacement": _ratio(tokens, tokens + errors),
        "completeness": _ratio(explained @ (score + weights), (score + weights).sum()),
    }
    weights, outside = graph.target_weights, graph.discarded_abs
    shares = normalised(graph.edges, outside)
    importance = _influence(shares, weights) + weights
    sums = np.asarray(abs(graph.edges).astype(np.float64).sum(1)).ravel() + outside
    unknown = outside / np.maximum(sums, TINY)
    lost = unknown + np.asarray(shares[:, graph.of_kind(ERROR)].sum(1)).ravel()
    rows = graph.has_row
    inputs = float(importance[graph.of_kind(TOKEN, POSITION)].sum())
    wrong = float(importance[graph.of_kind(ERROR)].sum() + importance @ unknown)
    return found | {
        "replacement_corrected": _ratio(inputs, inputs + wrong),
        "completeness_corrected": _ratio(
            (1 - lost[rows]) @ importance[rows], importance[rows].sum()
        ),
    }


def mean_path_length(graph: AttributionGraph) -> float:
    """Return how many edges lie between tokens and targets, the mean over all paths by their influence.

    A cross-layer transcoder can write what a later feature would compute, so that a circuit of several hops looks like
    one; its paths are then shorter than those of a transcoder for each layer on the same prompt. NaN without paths.
    """
    backward = normalised(graph.edges, graph.discarded_abs).T.tocsr()
    tokens, step = graph.of_kind(TOKEN), graph.target_weights
    masses: list[float] = []
    while step.any():
        step = backward @ step
        masses.append(float(step[tokens].sum()))
    lengths = np.arange(1, len(masses) + 1)
    return _ratio(float(lengths @ masses), sum(masses))


def _drop_loose(
    graph: AttributionGraph, nodes: np.ndarray, edges: csr_array
) -> tuple[np.ndarray, csr_array]:
    fixed, feature = graph.of_kind(TOKEN, LOGIT), graph.of_kind(FEATURE)
    while True:
        targets, sources = edges.nonzero()
        outgoing, incoming = (np.isin(np.arange(len(graph)), ends) for ends in (sources, targets))
        left = nodes & (fixed | (outgoing & (incoming | ~feature)))
        if (left == nodes).all():
            return nodes, edges
        nodes = left
        edges = _chosen(edges, lambda edges, left=left: left[edges.row] & left[edges.col])


def _chosen(edges: csr_array, choose: Callable[[coo_array], np.ndarray]) -> csr_array:
    """Return some of the edges."""
    edges = edges.tocoo()
    keep = choose(edges)
    return csr_array((edges.data[keep], (edges.row[keep], edges.col[keep])), shape=edges.shape)


def _cut(score: np.ndarray, threshold: float) -> float:
    """Return the value at which the largest scores reach a share of their sum."""
    if not len(score):
        return np.inf
    ordered = np.sort(score)[::-1]
    cumulative = np.cumsum(ordered) / max(ordered.sum(), TINY)
    return ordered[min(np.searchsorted(cumulative, threshold), len(ordered) - 1)]


def _share(score: np.ndarray) -> np.ndarray:
    order = np.argsort(-score, kind="stable")
    share = np.empty(len(score))
    share[order] = np.cumsum(score[order]) / max(score.sum(), TINY)
    return share


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
