"""Edge attribution and exact edge effects: two published programs, loops, derivatives and identities as oracles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_models import SHAPES, make_model, make_pairs, naive_run, naive_sources
from safetensors.torch import load_file

from mechatlas.circuits.attribution import attribute_edges
from mechatlas.circuits.backend import choose, measure, require_precision
from mechatlas.circuits.components import Graph
from mechatlas.circuits.exact_edges import exact_edge_effects
from mechatlas.circuits.metrics import make_metric
from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer, load
from mechatlas.models.weights import random_weights

PARITY = Path(__file__).parents[1] / "reference" / "parity"
KINDS = sorted(SHAPES)


@pytest.fixture(scope="module")
def parity():
    expected = load_file(PARITY / "expected.safetensors")
    model = load(PARITY / "model")
    answers, wrong = expected["answers"].T
    metric = make_metric("logit_difference", model, answers, wrong)
    end = torch.full((4,), expected["clean"].shape[1] - 1)
    return expected, (model, expected["clean"], expected["corrupt"], end, metric)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eap", {}),
        ("eap_ig5_left", {"method": "eap-ig-inputs", "steps": 5, "rule": "left"}),
        ("exact_edge_effects", None),
        ("exact_edge_effects_second_peer", None),
    ],
)
def test_two_published_programs_agree(parity, name, options):
    expected, arguments = parity
    scores = (
        exact_edge_effects(*arguments)
        if options is None
        else attribute_edges(*arguments, **options)
    )
    assert np.array_equal(scores.graph.edges, expected["mask"].numpy())
    assert np.abs(scores.mean - expected[name].numpy()).max() < 1e-6
    assert np.abs(expected[name].numpy()).max() > 0.01


def soft_effects(model, clean, corrupted, end, metric, at):
    """Derivative of the summed metric with respect to every edge's share of the corrupted activation, [S, D]."""
    weights = torch.full(
        Graph.of(model.config).edges.shape, at, dtype=torch.float64
    ).requires_grad_()
    low = naive_sources(model, corrupted)
    value = metric(naive_run(model, clean, corrupted, end, weights, low=low)).sum()
    return -torch.autograd.grad(value, weights)[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_eap_is_the_derivative_of_patching(kind):
    model = make_model(kind)
    pairs = make_pairs(model)
    graph = Graph.of(model.config)
    wanted = np.where(graph.edges, soft_effects(*[model, *pairs], at=1.0), 0) / 3
    scores = attribute_edges(model, *pairs)
    assert np.abs(scores.mean - wanted).max() < 1e-10
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_exact_effects_equal_loops(kind):
    model = make_model(kind)
    clean, corrupted, end, metric = make_pairs(model)
    graph = Graph.of(model.config)
    scores = exact_edge_effects(model, clean, corrupted, end, metric)
    base = metric(naive_run(model, clean, corrupted, end, graph.edges)).mean()
    rng = np.random.default_rng(0)
    some = rng.choice(np.flatnonzero(graph.edges), 40, replace=False)
    for edge in [*some, graph.n_destinations - 1, *np.flatnonzero(graph.edges)[-3:]]:
        circuit = graph.edges.copy()
        circuit.flat[edge] = False
        wanted = metric(naive_run(model, clean, corrupted, end, circuit)).mean() - base
        assert abs(scores.mean.flat[edge] - float(wanted)) < 1e-10
    assert not scores.mean[~graph.edges].any()


@pytest.mark.parametrize("rows", [1, 30, 10**6])
def test_exact_effects_do_not_depend_on_batches(rows, monkeypatch):
    model = make_model("llama")
    pairs = make_pairs(model)
    whole = exact_edge_effects(model, *pairs).mean
    monkeypatch.setattr("mechatlas.circuits.exact_edges.ROWS", rows)
    assert np.abs(exact_edge_effects(model, *pairs).mean - whole).max() < 1e-12


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "eap-ig-activations"])
def test_attribution_depends_on_neither_batches_nor_order(method, monkeypatch):
    model = make_model()
    clean, corrupted, end, metric = make_pairs(model, pairs=5)
    whole = attribute_edges(model, clean, corrupted, end, metric, method=method, steps=2)
    row = clean.shape[1] * whole.graph.n_sources * model.config.d_model * 8
    monkeypatch.setattr("mechatlas.circuits.attribution.MEMORY", 2 * row)  # batches of 2, 2 and 1
    order = torch.tensor([3, 0, 4, 2, 1])
    parts = attribute_edges(
        model,
        clean[order],
        corrupted[order],
        end[order],
        metric.select(order),
        method=method,
        steps=2,
    )
    assert np.abs(parts.mean - whole.mean).max() < 1e-12
    assert np.abs(parts.error - whole.error).max() < 1e-9


def test_errors_are_those_of_pairs_taken_alone():
    model = make_model()
    clean, corrupted, end, metric = make_pairs(model, pairs=4)
    alone = [
        attribute_edges(
            model, clean[[n]], corrupted[[n]], end[[n]], metric.select(slice(n, n + 1))
        ).mean
        for n in range(4)
    ]
    scores = attribute_edges(model, clean, corrupted, end, metric)
    assert np.allclose(scores.mean, np.mean(alone, axis=0), atol=1e-12)
    assert np.allclose(scores.error, np.std(alone, axis=0, ddof=1) / 2, atol=1e-9)


def test_equal_prompts_score_zero():
    model = make_model()
    clean, _, end, metric = make_pairs(model)
    for method in ("eap", "eap-ig-inputs", "eap-ig-activations"):
        assert not attribute_edges(model, clean, clean, end, metric, method=method).mean.any()
    assert np.abs(exact_edge_effects(model, clean, clean, end, metric).mean).max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_edges_out_of_a_source_sum_to_its_attribution(kind):
    model = make_model(kind)
    clean, corrupted, end, metric = make_pairs(model)
    scores = attribute_edges(model, clean, corrupted, end, metric).mean
    sources = {}

    def keep(point):
        def hook(x, layer):
            sources[point, layer] = x.requires_grad_() if not x.requires_grad else x

        return hook

    final = model.forward(clean, {p: keep(p) for p in ("embed", "z", "mlp_out")}, logits=False)
    value = metric(final[torch.arange(3), end]).mean()
    keys = list(sources)
    gradients = dict(zip(keys, torch.autograd.grad(value, [sources[k] for k in keys]), strict=True))
    other = {}
    hooks = {
        p: (lambda x, layer, p=p: other.__setitem__((p, layer), x))
        for p in ("embed", "z", "mlp_out")
    }
    model.forward(corrupted, hooks, logits=False)
    graph = Graph.of(model.config)
    for (point, layer), g in gradients.items():
        product = (other[point, layer] - sources[point, layer].detach()) * g
        first = 1 + layer * (graph.n_heads + 1)
        if point == "z":
            rows, wanted = slice(first, first + graph.n_heads), product.sum((0, 1, 3))
        else:
            row = 0 if point == "embed" else first + graph.n_heads
            rows, wanted = slice(row, row + 1), product.sum()[None]
        assert np.abs(scores[rows].sum(1) - wanted.numpy()).max() < 1e-10


def test_integrated_gradients_are_complete():
    """Edges out of the embedding add up to the whole change, edges out of a layer to that of patching the layer."""
    model = make_model(std=0.3)
    clean, corrupted, end, metric = make_pairs(model)
    at = torch.arange(3), end
    values = [metric(model.forward(x, logits=False)[at]).mean() for x in (corrupted, clean)]
    change, errors = float(values[0] - values[1]), []
    for steps in (4, 8, 16):
        scores = attribute_edges(
            model, clean, corrupted, end, metric, method="eap-ig-inputs", steps=steps
        )
        errors.append(abs(scores.mean[0].sum() - change))
    assert errors[2] < 0.01 * abs(change)
    assert errors[2] < errors[1] / 3 < errors[0] / 9  # the midpoint rule is of second order
    left = attribute_edges(
        model, clean, corrupted, end, metric, method="eap-ig-inputs", steps=16, rule="left"
    )
    assert abs(left.mean[0].sum() - change) > 5 * errors[2]

    layers = attribute_edges(
        model, clean, corrupted, end, metric, method="eap-ig-activations", steps=32
    )
    graph, other = Graph.of(model.config), {}
    hooks = {p: (lambda x, layer, p=p: other.__setitem__((p, layer), x)) for p in ("z", "mlp_out")}
    model.forward(corrupted, hooks, logits=False)
    for (point, layer), value in other.items():
        swap = {point: lambda x, here, layer=layer, value=value: value if here == layer else None}
        patched = metric(model.forward(clean, swap, logits=False)[at]).mean() - values[1]
        first = 1 + layer * (graph.n_heads + 1)
        heads = slice(first, first + graph.n_heads)
        rows = heads if point == "z" else slice(heads.stop, heads.stop + 1)
        assert abs(layers.mean[rows].sum() - float(patched)) < 0.005


def test_one_left_step_is_the_gradient_of_the_corrupted_run():
    model = make_model("llama")
    clean, corrupted, end, metric = make_pairs(model)
    one = attribute_edges(
        model, clean, corrupted, end, metric, method="eap-ig-inputs", steps=1, rule="left"
    )
    swapped = attribute_edges(model, corrupted, clean, end, metric)
    assert np.abs(one.mean + swapped.mean).max() < 1e-12


def linear_model():
    """Uniform attention, no MLP output, and norms whose epsilon makes them linear: every path is linear."""
    config = replace(SHAPES["gpt2"], norm_eps=1e14, initializer_range=0.5)
    weights = random_weights(config, 0, "cpu", torch.float64)
    for layer in weights.layers:
        layer.norm1 *= 1e7
        layer.norm2 *= 1e7
        layer.w_qkv[:, : 2 * config.d_model] = 0
        layer.w_down.zero_()
    weights.final_norm *= 1e7
    return Transformer(config, weights, "linear")


def test_linear_models_have_analytic_effects():
    model = linear_model()
    clean, corrupted, end, metric = make_pairs(model)
    exact = exact_edge_effects(model, clean, corrupted, end, metric)
    estimated = attribute_edges(model, clean, corrupted, end, metric)
    assert np.abs(exact.mean - estimated.mean).max() < 1e-9
    graph, d, dh = exact.graph, model.config.d_model, model.config.d_head
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    sources = [naive_sources(model, x) for x in (clean, corrupted)]
    direction = metric.direction @ centre
    at = torch.arange(3), end
    for s, (a, b) in enumerate(zip(*sources, strict=True)):
        wanted = ((b - a)[at] * direction).sum(-1).mean()
        assert abs(exact.mean[s, -1] - float(wanted)) < 1e-9
    # An edge into a value of the last layer: averaged over the past, through W_V W_O, into the logits.
    last, layer = model.config.n_layers - 1, model.weights.layers[-1]
    for head in range(graph.n_heads):
        columns = slice(2 * d + head * dh, 2 * d + (head + 1) * dh)
        ov = layer.w_qkv[:, columns] @ layer.w_o[head * dh : (head + 1) * dh]
        destination = graph.destination(f"L{last}.H{head}.v")
        for s in (0, 1, 1 + last * (graph.n_heads + 1) - 1):
            change = sources[1][s] - sources[0][s]
            past = torch.stack([change[n, : e + 1].mean(0) for n, e in enumerate(end)])
            wanted = ((past @ centre @ ov) * direction).sum(-1).mean()
            assert abs(exact.mean[s, destination] - float(wanted)) < 1e-9
    assert np.abs(exact.mean).max() > 0.1


@pytest.mark.parametrize("name", ["probability_difference", "kl"])
def test_other_metrics(name):
    model = make_model()
    clean, corrupted, end, difference = make_pairs(model)
    at = torch.arange(3), end
    metric = make_metric(
        name,
        model,
        difference.answers,
        difference.wrong,
        model.forward(corrupted, logits=False)[at],
    )
    graph = Graph.of(model.config)
    wanted = np.where(graph.edges, soft_effects(model, clean, corrupted, end, metric, 1.0), 0) / 3
    scores = attribute_edges(model, clean, corrupted, end, metric)
    assert np.abs(scores.mean - wanted).max() < 1e-10


def test_bad_requests():
    model = make_model()
    pairs = make_pairs(model)
    for options, words in (
        ({"method": "ig"}, "method 'ig' does not exist"),
        ({"method": "eap-ig-inputs", "rule": "right"}, "rule 'right'"),
        ({"method": "eap-ig-inputs", "steps": 0}, "steps: 0"),
    ):
        with pytest.raises(UserError, match=words):
            attribute_edges(model, *pairs, **options)
    ranks = make_metric("rank", model, pairs[3].answers, pairs[3].wrong)
    with pytest.raises(UserError, match="no gradient"):
        attribute_edges(model, *pairs[:3], ranks)
    with pytest.raises(UserError, match="bfloat16 would be rounding noise"):
        exact_edge_effects(make_model(dtype=torch.bfloat16), *pairs)


def test_matrix_product_is_chosen_by_measurement():
    results = measure()
    assert set(results) == {"highest", "medium"}
    assert results[choose()] < 1e-6
    require_precision(torch.float32, "it")
    require_precision(torch.bfloat16, "it", force=True)
