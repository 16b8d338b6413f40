"""Supernodes: features of a pruned graph that do the same, by clustering or by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

from mechatlas.circuits.graphs.graph import FEATURE, AttributionGraph, node_name
from mechatlas.circuits.graphs.influence import Pruned
from mechatlas.io import UserError

Supernodes = dict[str, list[int]]


def cluster_features(
    graph: AttributionGraph, pruned: Pruned, *, distance: float = 0.5, layer_span: int = 2
) -> Supernodes:
    """Group kept features of one position whose edges are alike.

    Parameters
    ----------
    graph, pruned
    distance : float
        Features are joined (average linkage) below this cosine distance of their profiles: their incoming and
        outgoing kept edges, each side at length 1.
    layer_span : int
        Features further apart than so many layers are never joined.

    Returns
    -------
    dict
        Name to nodes, at least two each; the name is that of the member with the largest influence.

    Raises
    ------
    UserError
        If ``distance`` is not in (0, 2] or ``layer_span`` is negative.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if not 0 < distance <= 2 or layer_span < 0:
        raise UserError(
            f"supernodes: distance {distance} must be in (0, 2] and layer_span {layer_span} at least 0"
        )
    nodes = np.flatnonzero(pruned.nodes & (graph.kind == FEATURE))
    found: Supernodes = {}
    profiles = _profiles(pruned.edges)
    for position in np.unique(graph.position[nodes]):
        here = nodes[graph.position[nodes] == position]
        if len(here) < 2:
            continue
        profile = profiles[here]
        far = 1 - np.asarray((profile @ profile.T).todense()) / 2
        # Larger than any distance that is asked for, so that an average over such a pair is too.
        apart = np.abs(np.subtract.outer(graph.layer[here], graph.layer[here])) > layer_span
        far[apart] = 1e6
        pairs = far[np.triu_indices(len(here), 1)]
        labels = fcluster(linkage(pairs, "average"), np.nextafter(distance, 0), "distance")
        for label in np.unique(labels):
            members = here[labels == label]
            if len(members) > 1:
                best = members[np.argmax(pruned.influence[members])]
                found[f"{node_name(graph, int(best))} and {len(members) - 1} more"] = (
                    members.tolist()
                )
    return found


def named_supernodes(graph: AttributionGraph, groups: Mapping[str, Sequence[str]]) -> Supernodes:
    """Return supernodes made by hand: name to names of nodes (`node_name`).

    Raises
    ------
    UserError
        If a node is not in the graph or in two supernodes.
    """
    by_name = {node_name(graph, node): node for node in range(len(graph))}
    found, taken = {}, {}
    for name, members in groups.items():
        for member in members:
            if member not in by_name:
                raise UserError(f"supernode {name!r}: the graph has no node {member!r}")
            if member in taken:
                raise UserError(
                    f"node {member!r} is in the supernodes {taken[member]!r} and {name!r}"
                )
            taken[member] = name
        found[name] = [by_name[member] for member in members]
    return found


def supernode_edges(edges: csr_array, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the summed edges between groups of nodes, float [G, G] (rows targets); 0 within a group."""
    members = np.zeros((len(groups), edges.shape[0]))
    for row, group in enumerate(groups):
        members[row, list(group)] = 1
    total = members @ (edges @ members.T)
    np.fill_diagonal(total, 0)
    return total


def _profiles(edges: csr_array) -> csr_array:
    """Return incoming beside outgoing edges of every node, each side divided by its norm."""
    from scipy.sparse import hstack

    return csr_array(hstack([_normalised(csr_array(edges)), _normalised(csr_array(edges.T))]))


def _normalised(rows: csr_array) -> csr_array:
    length = np.sqrt(rows.multiply(rows).sum(1))
    return rows.multiply(1 / np.where(length > 0, length, 1)[:, None]).tocsr()
