"""Sets of edges and their scores: ranking, selection, pruning, names.

A set of edges is a boolean array ``[S, D]`` over the sources and destinations of a `Graph`; scores are float64 arrays
of the same shape, zero where there is no edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mechatlas.circuits.components import Graph
from mechatlas.io import UserError


@dataclass(frozen=True)
class EdgeScores:
    """How strongly each edge acts on the metric.

    Attributes
    ----------
    graph : Graph
    mean : float64 array [S, D]
        Change of the metric, averaged over pairs, when the edge carries its corrupted activation (so an edge that
        helps has a negative score).
    error : float64 array [S, D]
        Standard error of that mean over pairs (NaN for a single pair).
    pairs : int
    """

    graph: Graph
    mean: np.ndarray
    error: np.ndarray
    pairs: int

    @classmethod
    def of(cls, graph: Graph, per_pair: np.ndarray) -> EdgeScores:
        """Summarise scores ``[N, S, D]`` of N pairs."""
        total = Moments(graph)
        total.add(per_pair)
        return total.scores()

    def rows(self, edges: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the columns of a table of edges (all, or the given set), strongest first."""
        chosen = self.graph.edges if edges is None else edges
        order = [e for e in rank(self.graph, self.mean) if chosen.flat[e]]
        s, d = np.unravel_index(np.array(order, dtype=int), self.mean.shape)
        return {
            "source": np.array(self.graph.sources, dtype=object)[s],
            "destination": np.array(self.graph.destinations, dtype=object)[d],
            "score": self.mean[s, d],
            "standard_error": self.error[s, d],
        }


class Moments:
    """Sums of scores and of their squares over pairs, so that no per-pair array of all edges is kept."""

    def __init__(self, graph: Graph):
        self.graph, self.pairs = graph, 0
        self.sum = np.zeros(graph.edges.shape)
        self.squares = np.zeros(graph.edges.shape)

    def add(self, per_pair: np.ndarray) -> None:
        per_pair = np.where(self.graph.edges, per_pair.astype(np.float64), 0.0)
        self.pairs += len(per_pair)
        self.sum += per_pair.sum(0)
        self.squares += np.square(per_pair).sum(0)

    def scores(self) -> EdgeScores:
        n, mean = self.pairs, self.sum / self.pairs
        variance = np.clip(self.squares / n - mean**2, 0, None)
        error = np.sqrt(variance / (n - 1)) if n > 1 else np.full(mean.shape, np.nan)
        return EdgeScores(self.graph, mean, error, n)


@lru_cache(maxsize=8)
def feeds(graph: Graph) -> np.ndarray:
    """Return which source's node each destination is an input of, bool ``[D, S]``.

    A key or value that several heads share feeds all of them; the logits feed nothing.
    """
    result = np.zeros((graph.n_destinations, graph.n_sources), dtype=bool)
    group, heads, shared = graph.n_heads // graph.n_kv_heads, graph.n_heads, graph.n_kv_heads
    for layer in range(graph.n_layers):
        first, source = layer * graph.readers, 1 + layer * (heads + 1)
        for head in range(heads):
            for reader in (head, heads + head // group, heads + shared + head // group):
                result[first + reader, source + head] = True
        result[first + graph.readers - 1, source + heads] = True
    result.flags.writeable = False
    return result


def stages(graph: Graph) -> list[tuple[slice, slice]]:
    """Return destinations and the sources that they feed, stage by stage: heads, MLP, heads, ..., logits."""
    result, start, source = [], 0, 1
    for _ in range(graph.n_layers):
        mlp, heads = start + graph.readers - 1, graph.n_heads
        result.append((slice(start, mlp), slice(source, source + heads)))
        result.append((slice(mlp, mlp + 1), slice(source + heads, source + heads + 1)))
        start, source = mlp + 1, source + heads + 1
    return [*result, (slice(start, start + 1), slice(source, source))]


def reaches_logits(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """Return from which destinations a path of edges leads to the logits, bool ``[D]``."""
    feeding, useful = feeds(graph), np.zeros(graph.n_destinations, dtype=bool)
    useful[-1] = True
    for destinations, sources in reversed(stages(graph)[:-1]):
        heard = edges[sources][:, useful].any(1)
        useful[destinations] = feeding[destinations, sources][:, heard].any(1)
    return useful


def rank(graph: Graph, scores: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Return all edges as flat indices, from the most to the least important; ties in order of the index.

    Parameters
    ----------
    signed : bool
        Rank by helpfulness, -score, instead of by strength, \\|score\\|. The first suits the area under the
        faithfulness curve (CPR), the second the distance from the model (CMD; Mueller et al. 2025, section 4).
    """
    key = scores if signed else -np.abs(scores)
    existing = np.flatnonzero(graph.edges)
    return existing[np.argsort(key.flat[existing], kind="stable")]


def top(graph: Graph, scores: np.ndarray, count: int, *, signed: bool = False) -> np.ndarray:
    """Return the ``count`` most important edges as a set; raise `UserError` if there are not that many."""
    if not 0 <= count <= graph.n_edges:
        raise UserError(
            f"a circuit of {count} edges: the model has {graph.n_edges}; choose 0 to that"
        )
    chosen = np.zeros(graph.edges.shape, dtype=bool)
    chosen.flat[rank(graph, scores, signed=signed)[:count]] = True
    return chosen


def prune(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """Return the edges that lie on a path from the embedding to the logits.

    The others carry nothing: a node without inputs writes its corrupted activation whatever its edges, and what enters
    a node without outputs is lost. So pruning changes no value.
    """
    feeding, fed = feeds(graph), np.zeros(graph.n_sources, dtype=bool)
    fed[0] = True
    for destinations, sources in stages(graph):
        read = edges[fed, destinations].any(0)
        fed[sources] = feeding[destinations, sources][read].any(0)
    edges = edges & graph.edges & fed[:, None]
    return edges & reaches_logits(graph, edges)


def kinds_of(graph: Graph) -> np.ndarray:
    """Return what each destination is: ``q``, ``k``, ``v``, ``mlp`` or ``logits``."""
    return np.array([name.split(".")[-1] for name in graph.destinations])


def nodes_of(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """Return the heads and MLPs that write along some edge of a set, bool ``[L, H + 1]``."""
    return edges.any(1)[1:].reshape(graph.shape)


def edge_names(graph: Graph, edges: np.ndarray) -> list[str]:
    """Return the names of a set of edges in the order of the sources."""
    return [graph.edge_name(s, d) for s, d in np.argwhere(edges)]


def edge_set(graph: Graph, names: Iterable[str]) -> np.ndarray:
    """Return the set of the named edges; raise `UserError` if the model lacks one."""
    chosen = np.zeros(graph.edges.shape, dtype=bool)
    for name in names:
        chosen[graph.edge(name)] = True
    return chosen


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of two sets' edges that both have (1 if both are empty)."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def random_edges(graph: Graph, like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many edges as ``like`` has into each destination kind and layer, uniformly.

    The control keeps the profile of the circuit: the number of edges into the queries, keys and values, into the MLP of
    each layer, and into the logits.
    """
    kinds = np.array(
        [
            f"{n.split('.')[0]}.{kind}"
            for n, kind in zip(graph.destinations, kinds_of(graph), strict=True)
        ]
    )
    chosen = np.zeros(like.shape, dtype=bool)
    for kind in dict.fromkeys(kinds):
        columns = kinds == kind
        possible = np.flatnonzero(graph.edges & columns)
        chosen.flat[rng.choice(possible, int(like[:, columns].sum()), replace=False)] = True
    return chosen
