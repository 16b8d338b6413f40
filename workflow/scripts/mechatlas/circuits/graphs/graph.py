"""The attribution graph: nodes, sparse edges, what was left out; and its file.

An edge is the direct effect of a source on a target's pre-activation (or logit). With every source, the edges into a
target sum to its pre-activation exactly: sources that other tools leave out (position embeddings, biases, MLP outputs
at the BOS position) are nodes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from mechatlas.io import UserError, read_arrays, read_provenance, write_arrays

KINDS = (
    "feature", "error", "token", "position", "bos_output", "attention_bias", "decoder_bias", "reader_bias", "logit",
)  # fmt: skip
FEATURE, ERROR, TOKEN, POSITION, BOS_OUTPUT, ATTENTION_BIAS, DECODER_BIAS, READER_BIAS, LOGIT = (
    range(9)
)
SHARED = (FEATURE, ERROR, TOKEN, LOGIT)  # kinds that circuit-tracer has too
COLUMNS = ("kind", "layer", "position", "feature", "value")


@dataclass(frozen=True)
class AttributionGraph:
    """A graph of M nodes, in the order of `KINDS`; within features, errors and BOS outputs by layer, then position.

    Attributes
    ----------
    kind : int8 [M]
        Index into `KINDS`.
    layer, position, feature : int32 [M]
        -1 where there is none. The layer of a logit is L; the feature of a token or logit node is the token (-1 for a
        custom direction).
    value : float [M]
        Activation of a feature, weight (probability) of a target, else 0.
    edges : csr_array [M, M]
        Rows are targets, columns sources.
    total : float [M]
        What a row must sum to: the pre-activation or logit; NaN for nodes without a row.
    discarded, discarded_abs : float [M]
        Sum, and sum of absolute values, of the edges of a row that are not stored.
    labels : mapping of int to str
        Names of custom targets by node.
    tokens : int64 [P]
    facts : mapping
        Model, transcoder and settings, as JSON values.
    """

    kind: np.ndarray
    layer: np.ndarray
    position: np.ndarray
    feature: np.ndarray
    value: np.ndarray
    edges: csr_array
    total: np.ndarray
    discarded: np.ndarray
    discarded_abs: np.ndarray
    labels: Mapping[int, str]
    tokens: np.ndarray
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.kind)

    def of_kind(self, *kinds: int) -> np.ndarray:
        """Return which nodes are of some kinds, bool [M]."""
        return np.isin(self.kind, kinds)

    @property
    def has_row(self) -> np.ndarray:
        """Which nodes have incoming edges by definition, bool [M]: traced features and targets."""
        return np.isfinite(self.total)

    @property
    def target_weights(self) -> np.ndarray:
        """The weight of each target, 0 for other nodes, float [M]."""
        return np.where(self.kind == LOGIT, self.value, 0.0)

    def gaps(self) -> np.ndarray:
        """Return for each row by how much its edges miss the total, NaN where there is no row."""
        return np.asarray(self.edges.sum(1)).ravel() + self.discarded - self.total

    def shared(self) -> AttributionGraph:
        """Return the graph without the kinds of node that circuit-tracer does not have.

        What its rows lose is not counted as discarded, so rows no longer sum to their totals.
        """
        return self.select(self.of_kind(*SHARED))

    def select(self, keep: np.ndarray) -> AttributionGraph:
        """Return the graph of some nodes, bool [M]."""
        index = np.flatnonzero(keep)
        place = {int(node): new for new, node in enumerate(index)}
        parts = {
            name: getattr(self, name)[index]
            for name in (*COLUMNS, "total", "discarded", "discarded_abs")
        }
        return AttributionGraph(
            **parts,
            edges=self.edges[index][:, index],
            labels={place[node]: label for node, label in self.labels.items() if node in place},
            tokens=self.tokens,
            facts=self.facts,
        )  # fmt: skip


def node_name(graph: AttributionGraph, node: int) -> str:
    """Return a name that no other node of the graph has, such as ``L3/F120@7``."""
    kind, layer, position, feature = (
        int(getattr(graph, column)[node]) for column in ("kind", "layer", "position", "feature")
    )
    if kind == FEATURE:
        return f"L{layer}/F{feature}@{position}"
    if kind == LOGIT:
        return f"logit/{feature}" if feature >= 0 else f"target/{node}"
    place = "".join(f"/{a}{b}" for a, b in (("L", layer), ("@", position)) if b >= 0)
    return f"{KINDS[kind]}{place}"


def save_graph(path: str | Path, graph: AttributionGraph, facts: Mapping[str, Any]) -> None:
    """Write a graph as safetensors with the provenance ``facts``, atomically."""
    edges = graph.edges
    arrays = {
        name: getattr(graph, name)
        for name in (*COLUMNS, "total", "discarded", "discarded_abs", "tokens")
    }
    arrays |= {"data": edges.data, "indices": edges.indices.astype(np.int32)}
    arrays["indptr"] = edges.indptr.astype(np.int64)
    labels = {str(node): label for node, label in graph.labels.items()}
    write_arrays(path, arrays, {**facts, "graph": {"labels": labels, **graph.facts}})  # fmt: skip


def load_graph(path: str | Path) -> AttributionGraph:
    """Read a graph that `save_graph` wrote.

    Raises
    ------
    UserError
        If the file is missing, damaged or holds no graph.
    """
    arrays, facts = read_arrays(path), read_provenance(path).get("graph")
    if not isinstance(facts, dict) or "indptr" not in arrays:
        raise UserError(
            f"{path} holds no attribution graph; make it with the rule attribution_graph"
        )
    size = len(arrays["kind"])
    edges = csr_array(
        tuple(arrays.pop(name) for name in ("data", "indices", "indptr")), shape=(size, size)
    )
    labels = {int(node): label for node, label in facts.pop("labels").items()}
    return AttributionGraph(**arrays, edges=edges, labels=labels, facts=facts)
