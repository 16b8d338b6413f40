"""Runs under circuits against one-destination-at-a-time loops in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edge_models import make_model, make_pairs, naive_run

from mechatlas.circuits.components import Graph
from mechatlas.circuits.edge_runs import EdgeRun
from mechatlas.circuits.edges import prune


def random_circuits(graph, count, rng, keep=(0.2, 0.95)):
    shares = np.linspace(*keep, count)[:, None, None]
    return (rng.random((count, *graph.edges.shape)) < shares) & graph.edges


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("full", [False, True])
def test_values_equal_loops(kind, full):
    model = make_model(kind)
    pairs = make_pairs(model)
    graph = Graph.of(model.config)
    circuits = random_circuits(graph, 6, np.random.default_rng(0))
    run = EdgeRun(model, *pairs, full=full)
    wanted = torch.stack([pairs[-1](naive_run(model, *pairs[:3], c)) for c in circuits])
    torch.testing.assert_close(run.values(circuits), wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_empty_and_full_circuits_are_the_two_runs(kind):
    model = make_model(kind)
    clean, corrupted, end, metric = make_pairs(model)
    at = torch.arange(len(end)), end
    exists = Graph.of(model.config).edges
    values = EdgeRun(model, clean, corrupted, end, metric).values(
        np.stack([exists, np.zeros_like(exists)])
    )
    wanted = [metric(model.forward(x, logits=False)[at]) for x in (clean, corrupted)]
    torch.testing.assert_close(values, torch.stack(wanted), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_moving_keeps_values_exact(kind):
    """Along a random walk over circuits, dead ends included, nothing stale is read."""
    model = make_model(kind)
    pairs = make_pairs(model)
    graph = Graph.of(model.config)
    rng = np.random.default_rng(1)
    run = EdgeRun(model, *pairs)
    walk = random_circuits(graph, 8, rng, (0.03, 0.5))[rng.permutation(8)]
    for circuit in walk:
        run.move(circuit)
        asked = random_circuits(graph, 2, rng, (0.05, 0.6))
        wanted = torch.stack([pairs[-1](naive_run(model, *pairs[:3], c)) for c in asked])
        torch.testing.assert_close(run.values(asked), wanted, atol=1e-10, rtol=0)


def test_pruning_changes_no_value():
    model = make_model()
    pairs = make_pairs(model)
    graph = Graph.of(model.config)
    circuits = random_circuits(graph, 12, np.random.default_rng(2), (0.02, 0.3))
    pruned = np.stack([prune(graph, c) for c in circuits])
    assert (pruned.sum((1, 2)) < circuits.sum((1, 2))).sum() > 3
    run = EdgeRun(model, *pairs)
    torch.testing.assert_close(run.values(pruned), run.values(circuits), atol=1e-12, rtol=0)


def test_batches_do_not_matter(monkeypatch):
    model = make_model()
    pairs = make_pairs(model)
    circuits = random_circuits(Graph.of(model.config), 5, np.random.default_rng(3))
    whole = EdgeRun(model, *pairs).values(circuits)
    monkeypatch.setattr("mechatlas.circuits.edge_runs.MEMORY", 1)
    torch.testing.assert_close(EdgeRun(model, *pairs).values(circuits), whole, atol=1e-12, rtol=0)
