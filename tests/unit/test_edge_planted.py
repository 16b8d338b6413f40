"""Every edge method finds the circuit that was planted in a model's weights, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import CIRCUIT, planted_model, planted_pairs

from mechatlas.circuits.acdc import acdc, backward_order
from mechatlas.circuits.agreement import agreement
from mechatlas.circuits.attribution import attribute_edges
from mechatlas.circuits.curves import Faithfulness
from mechatlas.circuits.edges import edge_names, nodes_of, top
from mechatlas.circuits.exact_edges import exact_edge_effects
from mechatlas.circuits.metrics import make_metric
from mechatlas.circuits.path_patching import path_patching
from mechatlas.circuits.search import smallest_circuit

EDGES = {"embed -> L0.H2.v", "L0.H2 -> L2.H1.k", "L2.H1 -> logits"}


@pytest.fixture(scope="module")
def planted():
    model = planted_model()
    clean, corrupted, answers, wrong = planted_pairs(16)
    end = torch.full((16,), clean.shape[1] - 1)
    metric = make_metric("logit_difference", model, answers, wrong)
    return model, clean, corrupted, end, metric


def found(graph, edges):
    assert set(graph.names(nodes_of(graph, edges))) == set(CIRCUIT)
    return set(edge_names(graph, edges))


@pytest.fixture(scope="module")
def exact(planted):
    return exact_edge_effects(*planted)


def test_exact_effects(planted, exact):
    assert found(exact.graph, top(exact.graph, exact.mean, 3)) == EDGES
    strength = np.sort(np.abs(exact.mean), axis=None)[::-1]
    assert strength[3] < 0.01 * strength[2]


@pytest.mark.parametrize("method", ["eap-ig-inputs", "eap-ig-activations"])
def test_integrated_gradients(planted, exact, method):
    scores = attribute_edges(*planted, method=method, steps=10)
    assert found(scores.graph, top(scores.graph, scores.mean, 3)) == EDGES
    assert agreement(scores.graph, scores.mean, exact.mean)[0]["pearson"] > 0.99


def test_plain_gradients_miss_a_saturated_head(planted, exact):
    """The induction head's softmax is saturated, so its key has no gradient; the search mends the ranking."""
    scores = attribute_edges(*planted)
    assert "L0.H2 -> L2.H1.k" not in edge_names(scores.graph, top(scores.graph, scores.mean, 20))
    assert agreement(scores.graph, scores.mean, exact.mean)[0]["pearson"] < 0.9
    circuit = smallest_circuit(Faithfulness(*planted), scores.mean, 0.9)
    assert found(scores.graph, circuit.edges) == EDGES


def test_search(planted, exact):
    circuit = smallest_circuit(Faithfulness(*planted), exact.mean, 0.9)
    assert found(exact.graph, circuit.edges) == EDGES and circuit.ranked == 3


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_acdc_in_any_order(planted, exact, seed):
    order = backward_order(exact.graph, None if seed is None else np.random.default_rng(seed))
    assert found(exact.graph, acdc(*planted, 0.1, order=order).edges) == EDGES


def test_path_patching(planted, exact):
    graph = exact.graph
    values = path_patching(*planted, graph.sources, ["L2.H1.k"]).mean(1)
    clean = values.max()
    assert [graph.sources[i] for i in torch.nonzero(values < 0.9 * clean)] == ["L0.H2"]
