"""Path patching, ACDC, search and faithfulness curves against loops and hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edge_models import SHAPES, make_model, make_pairs, naive_run

from mechatlas.circuits.acdc import acdc, backward_order, order_sensitivity
from mechatlas.circuits.agreement import agreement
from mechatlas.circuits.components import Graph
from mechatlas.circuits.curves import Faithfulness, area, trace_curve
from mechatlas.circuits.edge_runs import EdgeRun
from mechatlas.circuits.edges import (
    EdgeScores,
    edge_names,
    edge_set,
    jaccard,
    nodes_of,
    prune,
    random_edges,
    rank,
    top,
)
from mechatlas.circuits.exact_edges import exact_edge_effects
from mechatlas.circuits.metrics import make_metric
from mechatlas.circuits.path_patching import path_patching
from mechatlas.circuits.removal import remove_edges
from mechatlas.circuits.search import smallest_circuit
from mechatlas.io import UserError

KINDS = sorted(SHAPES)


def easy_pairs(model, pairs=4, seed=0):
    """Pairs whose metric is better on the clean prompts: answer and wrong token are swapped where it is not."""
    clean, corrupted, end, metric = make_pairs(model, pairs, seed=seed)
    at = torch.arange(pairs), end
    low, high = (metric(model.forward(x, logits=False)[at]) for x in (corrupted, clean))
    swap = high < low
    answers = torch.where(swap, metric.wrong, metric.answers)
    wrong = torch.where(swap, metric.answers, metric.wrong)
    return clean, corrupted, end, make_metric("logit_difference", model, answers, wrong)


# ---------------------------------------------------------------- path patching


def hooked_path(model, clean, corrupted, end, metric, senders, receivers):
    """Path patching with hooks and full passes, for heads and MLPs as the paper defines it."""
    graph, points = Graph.of(model.config), ("embed", "z", "mlp_out")
    a, b, c = {}, {}, {}

    def into(store, names):
        return {p: (lambda x, layer, p=p: store.__setitem__((p, layer), x)) for p in names}

    model.forward(corrupted, into(a, points), logits=False)
    model.forward(clean, into(b, points), logits=False)

    def frozen(point):
        def hook(x, layer):
            first = 1 + layer * (graph.n_heads + 1)
            if point == "embed":
                return a[point, 0] if 0 in senders else None
            if point == "mlp_out":
                return a[point, layer] if first + graph.n_heads in senders else None
            z = b[point, layer].clone()
            for head in range(graph.n_heads):
                if first + head in senders:
                    z[:, :, head] = a[point, layer][:, :, head]
            return z

        return hook

    reads = ("q", "k", "v", "mlp_in", "final_norm")

    def recording(point):
        return lambda x, layer: c.__setitem__((point, layer), x)

    hooks = {p: frozen(p) for p in points} | {p: recording(p) for p in reads}
    model.forward(clean, hooks, logits=False)

    def patched(point):
        def hook(x, layer):
            x = x.clone()
            for d in receivers:
                if d == graph.n_destinations - 1:
                    x = c[point, layer] if point == "final_norm" else x
                elif d // graph.readers == layer:
                    reader = d % graph.readers
                    kinds = [graph.n_heads, graph.n_kv_heads, graph.n_kv_heads, 1]
                    kind = int(np.searchsorted(np.cumsum(kinds), reader, side="right"))
                    index = reader - sum(kinds[:kind])
                    if point == ("q", "k", "v", "mlp_in")[kind]:
                        if point == "mlp_in":
                            x = c[point, layer]
                        else:
                            x[:, :, index] = c[point, layer][:, :, index]
            return x

        return hook

    final = model.forward(clean, {p: patched(p) for p in reads}, logits=False)
    return metric(final[torch.arange(len(end)), end])


@pytest.mark.parametrize("kind", KINDS)
def test_path_patching_equals_hooks(kind):
    model = make_model(kind)
    pairs = make_pairs(model)
    graph = Graph.of(model.config)
    key = graph.destinations[2 * graph.readers + graph.n_heads]
    for receivers in (["L2.H1.q"], [key, "L1.H0.q", "L2.mlp"], ["L1.mlp"], ["logits"]):
        wanted = {graph.destination(r) for r in receivers}
        senders = ["embed", "L0.H1", "L0.mlp", "L1.H0", "L2.mlp"]
        values = path_patching(model, *pairs, senders, receivers)
        for name, value in zip(senders, values, strict=True):
            loop = hooked_path(model, *pairs, {graph.source(name)}, wanted)
            torch.testing.assert_close(value, loop, atol=1e-10, rtol=0)
        both = path_patching(model, *pairs, [["L0.mlp", "L1.H0"]], receivers)[0]
        loop = hooked_path(model, *pairs, {graph.source("L0.mlp"), graph.source("L1.H0")}, wanted)
        torch.testing.assert_close(both, loop, atol=1e-10, rtol=0)


@pytest.mark.parametrize("through_mlps", [True, False])
def test_all_senders_together_noise_the_receiver(through_mlps):
    model = make_model()
    clean, corrupted, end, metric = make_pairs(model)
    graph, seen = Graph.of(model.config), {}
    model.forward(corrupted, {"v": lambda x, layer: seen.__setitem__(layer, x)}, logits=False)

    def noise(x, layer):
        if layer == 1:
            x = x.clone()
            x[:, :, 1] = seen[1][:, :, 1]
        return x

    wanted = metric(model.forward(clean, {"v": noise}, logits=False)[torch.arange(3), end])
    value = path_patching(
        model,
        clean,
        corrupted,
        end,
        metric,
        [graph.sources],
        ["L1.H1.v"],
        through_mlps=through_mlps,
    )[0]
    torch.testing.assert_close(value, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_direct_paths_are_single_edges(kind, monkeypatch):
    model = make_model(kind)
    clean, corrupted, end, metric = make_pairs(model)
    exact = exact_edge_effects(model, clean, corrupted, end, metric)
    base = metric(model.forward(clean, logits=False)[torch.arange(3), end])
    graph = exact.graph
    monkeypatch.setattr("mechatlas.circuits.path_patching.MEMORY", 1)  # one sender at a time
    for receiver in (
        "L2.H0.q",
        "L1.mlp",
        "logits",
        graph.destinations[graph.readers + graph.n_heads],
    ):
        senders = list(graph.sources)[::-1]
        values = path_patching(
            model, clean, corrupted, end, metric, senders, [receiver], through_mlps=False
        )
        column = exact.mean[::-1, graph.destination(receiver)]
        assert np.abs((values - base).mean(1).numpy() - column).max() < 1e-10


def test_unknown_names():
    model = make_model()
    pairs = make_pairs(model)
    with pytest.raises(UserError, match="L9.H0"):
        path_patching(model, *pairs, ["L9.H0"], ["logits"])
    with pytest.raises(UserError, match="L1.H0.x"):
        path_patching(model, *pairs, ["embed"], ["L1.H0.x"])


# ---------------------------------------------------------------- ACDC


def acdc_loop(model, pairs, threshold, order, sign=-1):
    graph = Graph.of(model.config)
    circuit, metric = graph.edges.copy(), pairs[-1]
    loss = sign * float(metric(naive_run(model, *pairs[:3], circuit)).mean())
    for edge in order:
        circuit.flat[edge] = False
        after = sign * float(metric(naive_run(model, *pairs[:3], circuit)).mean())
        if after - loss < threshold:
            loss = after
        else:
            circuit.flat[edge] = True
    return circuit


@pytest.mark.parametrize(
    ("kind", "threshold"), [("gpt2", 0.003), ("gpt2", 0.05), ("gpt2", 1.0), ("llama", 0.05)]
)
def test_acdc_equals_the_loop(kind, threshold):
    model = make_model(kind)
    pairs = easy_pairs(model, 2)
    rng = np.random.default_rng(0)
    graph = Graph.of(model.config)
    order = backward_order(graph, rng) if kind == "gpt2" else None
    wanted = acdc_loop(model, pairs, threshold, backward_order(graph) if order is None else order)
    found = acdc(model, *pairs, threshold, order=order)
    assert np.array_equal(found.edges, wanted)
    assert set(found.decisions) == set(np.flatnonzero(graph.edges).tolist())
    assert found.evaluated < 3 * graph.n_edges
    for batch in (1, 3):
        again = acdc(model, *pairs, threshold, order=order, batch=batch)
        assert np.array_equal(again.edges, wanted) and again.decisions == found.decisions


def test_acdc_with_kl_and_dead_ends():
    model = make_model()
    clean, corrupted, end, metric = easy_pairs(model, 2)
    x = model.forward(clean, logits=False)[torch.arange(2), end]
    pairs = clean, corrupted, end, make_metric("kl", model, metric.answers, metric.wrong, x)
    found = acdc(model, *pairs, 0.2)
    assert np.array_equal(
        found.edges, acdc_loop(model, pairs, 0.2, backward_order(Graph.of(model.config)), 1)
    )
    assert found.dead > 0


def test_interrupted_acdc_continues():
    model = make_model()
    pairs = easy_pairs(model, 2)
    whole = acdc(model, *pairs, 0.02)

    class Stop(Exception):
        pass

    logged = {}

    def log(new):
        logged.update(new)
        if len(logged) > len(whole.decisions) // 2:
            raise Stop

    with pytest.raises(Stop):
        acdc(model, *pairs, 0.02, log=log)
    rest = acdc(model, *pairs, 0.02, decided=logged)
    assert np.array_equal(rest.edges, whole.edges)
    assert rest.evaluated < whole.evaluated


def test_backward_orders_never_decide_a_source_before_its_readers():
    graph = Graph(3, 2, 1)
    for rng in (None, np.random.default_rng(0)):
        order = backward_order(graph, rng)
        assert sorted(order) == np.flatnonzero(graph.edges).tolist()
        columns = order % graph.n_destinations
        depth = np.where(columns == graph.n_destinations - 1, 99, columns // graph.readers * 2)
        depth += (columns % graph.readers == graph.readers - 1) & (depth < 99)
        assert (np.diff(depth) <= 0).all()
    assert not np.array_equal(order, backward_order(graph))


def test_order_sensitivity():
    a = np.array([[True, True], [False, True]])
    b = np.array([[True, False], [False, True]])
    result = order_sensitivity([a, b, a])
    assert result["jaccard_min"] == pytest.approx(2 / 3)
    assert result["jaccard_mean"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert result["kept"][0, 1] == pytest.approx(2 / 3) and result["sizes"].tolist() == [3, 2, 3]


@pytest.mark.parametrize("threshold", [0, -1, float("nan")])
def test_thresholds_out_of_range(threshold):
    model = make_model()
    with pytest.raises(UserError, match="must be positive"):
        acdc(model, *make_pairs(model), threshold)


# ---------------------------------------------------------------- search and curves


@pytest.mark.parametrize("target", [0.3, 0.8, 1.0])
def test_smallest_circuit(target):
    model = make_model()
    pairs = easy_pairs(model)
    faithfulness = Faithfulness(model, *pairs)
    scores = exact_edge_effects(model, *pairs).mean
    found = smallest_circuit(faithfulness, scores, target)
    graph = faithfulness.run.graph
    fresh = Faithfulness(model, *pairs)
    assert found.faithfulness >= target - 1e-9
    assert fresh(found.edges[None])[0] == pytest.approx(found.faithfulness, abs=1e-9)
    if found.ranked > 1:  # one edge fewer of the ranking does not suffice
        assert fresh(top(graph, scores, found.ranked - 1)[None])[0] < target
    start = prune(graph, top(graph, scores, found.ranked))
    loop = start.copy()
    for edge in rank(graph, scores)[::-1]:
        if loop.flat[edge]:
            loop.flat[edge] = False
            loop.flat[edge] = fresh(loop[None])[0] < target
    assert np.array_equal(found.edges, prune(graph, loop))
    assert found.edges.sum() <= start.sum()


def test_curves_hold_what_loops_give():
    model = make_model()
    pairs = easy_pairs(model)
    faithfulness = Faithfulness(model, *pairs)
    scores = exact_edge_effects(model, *pairs).mean
    graph, metric = faithfulness.run.graph, pairs[-1]
    rng = np.random.default_rng(0)
    shares = (0.05, 0.3, 0.7, 1.0)
    curve = trace_curve(faithfulness, scores, rng, shares=shares, randoms=3)
    values = [
        float(metric(naive_run(model, *pairs[:3], top(graph, scores, size))).mean())
        for size in [0, *curve.sizes]
    ]
    wanted = (np.array(values[1:]) - values[0]) / (values[-1] - values[0])
    assert np.abs(curve.faithfulness - wanted).max() < 1e-10
    assert curve.faithfulness[-1] == pytest.approx(1) and curve.random[-1] == pytest.approx(1)
    assert (curve.realised <= curve.sizes).all() and curve.realised[-1] == graph.n_edges
    assert (curve.low <= curve.faithfulness + 1e-9).all() and (curve.high >= curve.low).all()
    assert (curve.random_low <= curve.random).all() and (curve.random <= curve.random_high).all()
    assert curve.cpr == pytest.approx(np.trapezoid(wanted, shares))
    assert curve.cmd == pytest.approx(np.trapezoid(np.abs(1 - wanted), shares))


def test_area_by_hand():
    assert area(np.array([0, 0.5, 1]), np.array([0, 1, 1])) == pytest.approx(0.75)


def test_empty_and_full_faithfulness():
    model = make_model("llama")
    faithfulness = Faithfulness(model, *easy_pairs(model))
    exists = faithfulness.run.graph.edges
    assert faithfulness(np.stack([np.zeros_like(exists), exists])).tolist() == [0, 1]


def test_nothing_to_explain():
    model = make_model()
    clean, corrupted, end, metric = easy_pairs(model)
    with pytest.raises(UserError, match="choose prompts that the model solves"):
        Faithfulness(model, corrupted, clean, end, metric)
    faithfulness = Faithfulness(model, clean, corrupted, end, metric)
    for target in (0, 1.5):
        with pytest.raises(UserError, match="choose one in"):
            smallest_circuit(faithfulness, faithfulness.run.graph.edges * 1.0, target)
    with pytest.raises(UserError, match="shares: 1.2"):
        trace_curve(
            faithfulness,
            faithfulness.run.graph.edges * 1.0,
            np.random.default_rng(0),
            shares=(1.2,),
        )


# ---------------------------------------------------------------- sets of edges


def test_ranking_and_selection():
    graph = Graph(
        1, 1, 1
    )  # embed reads into q, k, v, mlp, logits; head into mlp, logits; mlp into logits
    scores = np.zeros(graph.edges.shape)
    scores[0, :5] = [3.0, -4.0, 0.5, 0.5, -1.0]
    scores[2, 0] = 99  # no such edge
    names = lambda edges: {graph.edge_name(*np.unravel_index(e, scores.shape)) for e in edges}  # noqa: E731
    assert names(rank(graph, scores)[:2]) == {"embed -> L0.H0.k", "embed -> L0.H0.q"}
    assert names(rank(graph, scores, signed=True)[:2]) == {"embed -> L0.H0.k", "embed -> logits"}
    assert top(graph, scores, 8).sum() == graph.n_edges == 8
    with pytest.raises(UserError, match="has 8"):
        top(graph, scores, 9)
    table = EdgeScores(graph, scores, scores * 0, 3).rows(top(graph, scores, 2))
    assert table["source"].tolist() == ["embed", "embed"] and table["score"].tolist() == [-4.0, 3.0]


def test_pruning_by_hand():
    graph = Graph(2, 1, 1)
    kept = ["embed -> L0.H0.v", "L0.H0 -> L1.mlp", "L1.mlp -> logits"]
    lost = ["L1.H0 -> logits", "L0.H0 -> L0.mlp"]  # a node without inputs, a node without outputs
    edges = edge_set(graph, kept + lost)
    assert sorted(edge_names(graph, prune(graph, edges))) == sorted(kept)
    assert graph.names(nodes_of(graph, edges)) == ["L0.H0", "L1.H0", "L1.mlp"]
    assert jaccard(edges, edge_set(graph, kept)) == pytest.approx(3 / 5)
    with pytest.raises(UserError):
        edge_set(graph, ["L1.H0 -> L0.mlp"])


def test_random_circuits_keep_the_profile():
    graph = Graph(3, 4, 2)
    rng = np.random.default_rng(0)
    like = graph.edges & (rng.random(graph.edges.shape) < 0.3)
    drawn = random_edges(graph, like, rng)
    assert not (drawn & ~graph.edges).any() and not np.array_equal(drawn, like)
    for layer in range(3):
        start = layer * graph.readers
        for a, b in ((0, 4), (4, 6), (6, 8), (8, 9)):
            columns = slice(start + a, start + b)
            assert drawn[:, columns].sum() == like[:, columns].sum()
    assert drawn[:, -1].sum() == like[:, -1].sum()


def test_removal_leaves_the_run_at_the_result():
    model = make_model()
    pairs = easy_pairs(model, 2)
    run = EdgeRun(model, *pairs, full=True)
    order = rank(run.graph, np.random.default_rng(0).random(run.graph.edges.shape)).tolist()
    loss = lambda values: (-values.mean(1)).tolist()  # noqa: E731
    result = remove_edges(run, order, loss, lambda before, after: after - before < 0.05)
    assert np.array_equal(run.edges, result.edges)
    wanted = pairs[-1](naive_run(model, *pairs[:3], result.edges))
    torch.testing.assert_close(run.values(result.edges[None])[0], wanted, atol=1e-10, rtol=0)


def test_agreement_by_hand():
    graph = Graph(1, 1, 1)
    exact = np.where(graph.edges, np.arange(graph.edges.size).reshape(graph.edges.shape) + 1.0, 0)
    rows = agreement(graph, exact**3, exact)
    assert [r["kind"] for r in rows] == ["all", "q", "k", "v", "mlp", "logits"]
    assert rows[0]["spearman"] == pytest.approx(1) and rows[0]["pearson"] < 0.99
    assert rows[0]["edges"] == 8 and rows[4]["edges"] == 2 and rows[0]["top"] == {}
    assert agreement(graph, -exact, exact)[5]["spearman"] == pytest.approx(-1)
    assert np.isnan(rows[1]["pearson"])
