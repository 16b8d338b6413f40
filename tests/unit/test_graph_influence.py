"""Influence, pruning and scores on graphs made by hand, and the graph's file."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from mechatlas.circuits.graphs.graph import (
    ERROR,
    FEATURE,
    KINDS,
    LOGIT,
    POSITION,
    TOKEN,
    AttributionGraph,
    load_graph,
    node_name,
    save_graph,
)
from mechatlas.circuits.graphs.influence import influence, prune, scores
from mechatlas.io import UserError


def hand_graph(kinds, edges, weights=(1.0,), discarded=None):
    """Make a graph of nodes of some kinds; ``edges`` maps (target, source) to weights."""
    size = len(kinds)
    dense = np.zeros((size, size))
    for (target, source), weight in edges.items():
        dense[target, source] = weight
    kind = np.array(kinds, np.int8)
    value = np.zeros(size)
    value[kind == LOGIT] = weights
    value[kind == FEATURE] = 1.0
    lost = np.zeros(size)
    for node, amount in (discarded or {}).items():
        lost[node] = amount
    has_row = np.isin(kind, (FEATURE, LOGIT))
    total = np.where(has_row, dense.sum(1) + lost, np.nan)
    index = np.arange(size, dtype=np.int32)
    return AttributionGraph(
        kind, index * 0, index.copy(), index, value, csr_array(dense), total, lost, np.abs(lost), {},
        np.arange(3), {"layers": 2},
    )  # fmt: skip


def test_influence_follows_every_path():
    # logit <- f1 (3), f0 (-1); f1 <- f0 (2), token (2)
    edges = {(3, 1): 3, (3, 0): -1, (1, 0): 2, (1, 2): 2, (0, 2): 5}
    graph = hand_graph([FEATURE, FEATURE, TOKEN, LOGIT], edges)
    found = influence(graph.edges, graph.target_weights)
    assert np.allclose(found, [1 / 4 + 3 / 8, 3 / 4, 3 / 8 + 1 / 4 + 3 / 8, 0])


def test_influence_weighs_targets_and_refuses_cycles():
    graph = hand_graph([FEATURE, FEATURE, LOGIT, LOGIT], {(2, 0): 1, (3, 1): 4}, weights=(0.75, 0.25))  # fmt: skip
    assert np.allclose(influence(graph.edges, graph.target_weights), [0.75, 0.25, 0, 0])
    loop = hand_graph([FEATURE, FEATURE, LOGIT], {(2, 0): 1, (0, 1): 1, (1, 0): 1})
    with pytest.raises(ValueError, match="cycle"):
        influence(loop.edges, loop.target_weights)


@pytest.mark.parametrize(
    ("edges", "compatible", "corrected"),
    [
        ({(3, 1): 2.0}, 0.5, 0.0),  # the logit is an error's work alone
        ({(3, 1): 1.0, (3, 2): -1.0}, 0.75, 0.5),  # half an error's, half a token's
        ({(3, 2): 1.0}, 1.0, 1.0),
        # Through a feature that is half error: rows logit (0 of error), feature (1/2).
        ({(3, 0): 1.0, (0, 1): 1.0, (0, 2): 1.0}, 5 / 6, 3 / 4),
    ],
)
def test_completeness_compatible_and_corrected(edges, compatible, corrected):
    found = scores(hand_graph([FEATURE, ERROR, TOKEN, LOGIT], edges))
    assert found["completeness"] == pytest.approx(compatible)
    assert found["completeness_corrected"] == pytest.approx(corrected)


def test_replacement_compares_tokens_with_errors():
    kinds = [FEATURE, ERROR, TOKEN, POSITION, LOGIT]
    edges = {(4, 0): 2.0, (4, 1): 1.0, (4, 3): 1.0, (0, 2): 3.0, (0, 1): 1.0}
    found = scores(hand_graph(kinds, edges))
    # Without the position: error 1/3 + 2/3 * 1/4, token 2/3 * 3/4.
    assert found["replacement"] == pytest.approx(0.5)
    # With it: error 1/4 + 1/2 * 1/4, token 1/2 * 3/4, position 1/4.
    assert found["replacement_corrected"] == pytest.approx((3 / 8 + 1 / 4) / 1)


def test_what_was_discarded_is_unexplained():
    kinds, edges = [FEATURE, ERROR, TOKEN, LOGIT], {(3, 2): 1.0}
    found = scores(hand_graph(kinds, edges, discarded={3: 3.0}))
    assert found["completeness_corrected"] == pytest.approx(0.25)
    assert found["replacement_corrected"] == pytest.approx(0.25)
    assert found["completeness"] == pytest.approx(1.0)


def test_pruning_keeps_the_strong_path_and_drops_what_hangs_loose():
    kinds = [FEATURE] * 4 + [ERROR, TOKEN, LOGIT]
    edges = {
        (6, 0): 10.0, (0, 1): 10.0, (1, 5): 10.0,  # the strong path
        (6, 2): 0.1, (2, 5): 1.0,                  # a weak one
        (0, 3): 4.0,                               # a feature without inputs
    }  # fmt: skip
    graph = hand_graph(kinds, edges)
    pruned = prune(graph, node_threshold=0.95, edge_threshold=0.9)
    assert pruned.nodes.tolist() == [True, True, False, False, False, True, True]
    kept = {(int(t), int(s)) for t, s in zip(*pruned.edges.nonzero(), strict=True)}
    assert kept == {(6, 0), (0, 1), (1, 5)}
    assert pruned.edges[0, 1] == 10.0
    everything = prune(graph, node_threshold=1, edge_threshold=1)
    assert everything.nodes.tolist() == [True, True, True, False, False, True, True]
    assert everything.edges.nnz == graph.edges.nnz - 1


def test_tokens_and_targets_stay_whatever_their_influence():
    graph = hand_graph([FEATURE, TOKEN, TOKEN, LOGIT], {(3, 0): 1.0, (0, 1): 1.0, (0, 2): 1e-9})
    assert prune(graph, node_threshold=0.5).nodes[1:].all()


def test_thresholds_out_of_range_are_one_clear_line():
    graph = hand_graph([TOKEN, LOGIT], {(1, 0): 1.0})
    for settings in ({"node_threshold": 0}, {"edge_threshold": 1.5}, {"node_threshold": float("nan")}):  # fmt: skip
        with pytest.raises(UserError, match="must be above 0 and at most 1"):
            prune(graph, **settings)


def test_a_graph_without_influence_has_no_scores():
    found = scores(hand_graph([FEATURE, TOKEN, LOGIT], {}, weights=(0.0,)))
    assert all(np.isnan(value) for value in found.values())


def test_file_and_names(tmp_path):
    graph = hand_graph(list(range(len(KINDS))), {(8, 0): 1.5, (0, 2): -2.0})
    path = tmp_path / "graph.safetensors"
    save_graph(path, graph, {"seed": 0})
    back = load_graph(path)
    assert np.array_equal(back.edges.toarray(), graph.edges.toarray())
    for name in ("kind", "layer", "position", "feature", "value", "total", "discarded", "tokens"):
        assert np.array_equal(getattr(back, name), getattr(graph, name), equal_nan=True)
    assert back.facts == graph.facts
    names = [node_name(graph, node) for node in range(len(graph))]
    assert len(set(names)) == len(names) and names[0] == "L0/F0@0"
    with pytest.raises(UserError, match="does not exist"):
        load_graph(tmp_path / "none.safetensors")
