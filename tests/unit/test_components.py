"""Names and numbering of nodes and edges against rules written out edge by edge."""

from __future__ import annotations

import numpy as np
import pytest

from mechatlas.circuits.components import Graph, parse_node
from mechatlas.io import UserError


def writes_before(source, destination):
    """Say from the names alone whether a source writes before a destination reads."""
    if source == "embed" or destination == "logits":
        return True
    writer, _ = parse_node(source)
    reader = int(destination[1:].split(".")[0])
    same_block = writer == reader and destination.endswith("mlp") and not source.endswith("mlp")
    return writer < reader or same_block


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 4, 2), (2, 4, 1)])
def test_edges_lead_to_later_readers(shape):
    graph = Graph(*shape)
    expected = [[writes_before(s, d) for d in graph.destinations] for s in graph.sources]
    assert np.array_equal(graph.edges, np.array(expected))
    assert graph.n_edges == graph.edges.sum()
    assert len(set(graph.sources)) == graph.n_sources == len(graph.sources)
    assert len(set(graph.destinations)) == graph.n_destinations == len(graph.destinations)


def test_gpt2_small_has_the_published_number_of_edges():
    graph = Graph(12, 12, 12)
    assert (graph.n_sources, graph.n_destinations, graph.n_edges) == (157, 445, 32491)


def test_names_and_indices_belong_together():
    graph = Graph(3, 4, 2)
    assert graph.sources[1 + 2 * 5 + 3] == "L2.H3" and graph.source("L2.mlp") == 15
    assert graph.destinations[9 + 3] == "L1.H3.q" and graph.destinations[9 + 4 + 1] == "L1.KV1.k"
    assert graph.destination("L1.KV0.v") == 9 + 6 and graph.destination("L1.mlp") == 9 + 8
    assert Graph(2, 2, 2).destinations[2:4] == ("L0.H0.k", "L0.H1.k")
    source, destination = graph.edge("L0.H2 -> L1.KV1.k")
    assert graph.edge_name(source, destination) == "L0.H2 -> L1.KV1.k"


def test_sets_of_nodes_round_trip():
    graph = Graph(3, 2, 2)
    names = ["L0.H1", "L0.mlp", "L2.H0"]
    chosen = graph.node_set(names)
    assert (
        chosen.shape == (3, 3)
        and chosen.sum() == 3
        and chosen[0, 1]
        and chosen[0, 2]
        and chosen[2, 0]
    )
    assert graph.names(chosen) == names
    assert np.flatnonzero(chosen).tolist() == [graph.source(name) - 1 for name in names]


@pytest.mark.parametrize(
    "call",
    [
        lambda g: g.source("L3.H0"),
        lambda g: g.source("L0.H0.q"),
        lambda g: g.destination("L0.H0"),
        lambda g: g.edge("L1.H0 -> L1.H1.q"),
        lambda g: g.edge("L1.mlp"),
        lambda g: g.node_set(["embed"]),
        lambda g: parse_node("H3"),
    ],
)
def test_wrong_names_are_user_errors(call):
    with pytest.raises(UserError):
        call(Graph(3, 2, 2))
