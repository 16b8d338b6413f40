"""Faithfulness, completeness, minimality, controls and circuit files."""

from __future__ import annotations

import json

import pytest
import torch
from edge_models import make_model
from node_reference import logit_difference, removed_run, solved_pairs
from planted import CIRCUIT, planted_model, planted_pairs

from mechatlas.circuits import evaluate as ev
from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.circuit_file import make_circuit, read_circuit, write_circuit
from mechatlas.circuits.components import Graph
from mechatlas.circuits.controls import PROFILES, against_random, random_circuits
from mechatlas.circuits.shared import cross_task, overlap
from mechatlas.io import UserError, read_provenance


@pytest.fixture(scope="module")
def planted():
    model = planted_model()
    keep = torch.from_numpy(Graph.of(model.config).node_set(CIRCUIT))
    return Ablation(model, *planted_pairs(seed=5)), keep


def mean(model, pairs, keep):
    x = removed_run(model, *pairs[:2], keep, "mean")
    return logit_difference(model, x, *pairs[2:]).mean().item()


def test_full_and_empty_circuits_are_the_ends_of_the_scale():
    model = make_model("llama")
    pairs = solved_pairs(model)
    ablation = Ablation(model, *pairs)
    half = ablation.full.clone()
    half[1] = False
    table = ev.faithfulness(ablation, torch.stack([ablation.full, ~ablation.full, half]), seed=0)
    full, empty, inside = (mean(model, pairs, k) for k in (ablation.full, ~ablation.full, half))
    assert table["value"].tolist() == pytest.approx([full, empty, inside])
    assert table["recovered"].tolist() == pytest.approx(
        [100, 0, 100 * (inside - empty) / (full - empty)], abs=1e-9
    )
    assert table["percent"].tolist() == pytest.approx(
        [100, 100 * empty / full, 100 * inside / full]
    )
    assert table["nodes"].tolist() == [15, 0, 10]
    assert (table["percent_low"] <= table["percent"] + 1e-9).all()
    assert (table["percent"] <= table["percent_high"] + 1e-9).all()


def test_knock_outs_inside_a_circuit_and_from_the_full_model():
    model = make_model()
    pairs = solved_pairs(model)
    ablation = Ablation(model, *pairs)
    graph, keep = Graph.of(model.config), ablation.full.clone()
    keep[1, 0] = keep[0, -1] = False
    full = mean(model, pairs, ablation.full)
    for chosen in (ablation.full, keep):
        table = ev.knock_outs(ablation, chosen, seed=0).set_index("component")
        assert sorted(table.index) == sorted(graph.names(chosen))
        assert table["drop"].is_monotonic_decreasing
        for name in table.index:
            without = chosen & ~torch.from_numpy(graph.node_set([name]))
            lost = mean(model, pairs, chosen) - mean(model, pairs, without)
            assert table["drop"][name] == pytest.approx(100 * lost / full, abs=1e-8)


def test_the_planted_circuit_is_faithful_complete_minimal_and_better_than_chance(planted):
    ablation, keep = planted
    assert ev.faithfulness(ablation, keep[None], seed=0)["recovered"].item() == pytest.approx(
        100, abs=3
    )
    assert ev.completeness(ablation, keep, seed=0, samples=5)["incompleteness"].max() < 15
    table = ev.minimality(ablation, keep, seed=0)
    assert sorted(table["component"]) == sorted(CIRCUIT) and table["alone"].min() > 80
    for profile, count in {"layer": 15, "kind": 40, "size": 40}.items():
        control = against_random(ablation, keep, 40, seed=0, profile=profile)
        assert control["count"] == len(control["random"]) == count
        assert control["percent"] > 95 > 60 > control["max"] and control["p"] == 1 / (1 + count)


def test_an_incomplete_circuit_shows():
    """Two copies of the induction head: a circuit with one of them does not fall as the model does."""
    model = planted_model()
    layer, head = model.weights.layers[2], 20
    for block in range(3):
        column = 4 * head * block
        layer.w_qkv[:, column : column + head] = layer.w_qkv[:, column + head : column + 2 * head]
    layer.w_o[:head] = layer.w_o[head : 2 * head]
    ablation = Ablation(model, *planted_pairs())
    graph = Graph.of(model.config)
    keep = torch.from_numpy(graph.node_set(["L0.H2", "L2.H1"]))
    table = ev.completeness(ablation, keep, seed=0, samples=2)
    worst = table.iloc[0]
    assert worst["removed"] == "L2.H1" and worst["incompleteness"] > 40
    both = torch.from_numpy(graph.node_set(["L0.H2", "L2.H0", "L2.H1"]))
    assert ev.completeness(ablation, both, seed=0, samples=2)["incompleteness"].max() < 15


def test_completeness_of_the_full_model_is_exact():
    model = make_model()
    ablation = Ablation(model, *solved_pairs(model))
    table = ev.completeness(ablation, ablation.full, seed=0, samples=3, depth=2)
    assert table["incompleteness"].max() < 1e-9
    assert table["kind"].value_counts().to_dict() == {
        "single": 9,
        "layer": 3,
        "random": 3,
        "greedy": 2,
    }


def test_minimality_tries_sets_that_make_a_node_matter():
    model = planted_model()
    layer, head = model.weights.layers[2], 20
    for block in range(3):
        column = 4 * head * block
        layer.w_qkv[:, column : column + head] = layer.w_qkv[:, column + head : column + 2 * head]
    layer.w_o[:head] = layer.w_o[head : 2 * head]
    ablation = Ablation(model, *planted_pairs())
    keep = torch.from_numpy(Graph.of(model.config).node_set(["L0.H2", "L2.H0", "L2.H1"]))
    table = ev.minimality(ablation, keep, seed=0, samples=12).set_index("component")
    assert table["largest"]["L2.H0"] > table["alone"]["L2.H0"] + 5
    assert "L2.H1" in table["removed"]["L2.H0"] and "L0.H2" not in table["removed"]["L2.H0"]


def test_random_circuits_have_the_size_and_profile():
    keep = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    drawn = {p: random_circuits(keep, 50, seed=1, profile=p) for p in PROFILES}
    for circuits in drawn.values():
        assert len({d.numpy().tobytes() for d in circuits}) == 50
        assert not (circuits == keep).all((1, 2)).any()
        assert (circuits.sum((1, 2)) == keep.sum()).all()
    assert (drawn["layer"][..., :-1].sum(-1) == keep[:, :-1].sum(-1)).all()
    assert (drawn["layer"][..., -1] == keep[:, -1]).all()
    for other in ("kind", "size"):
        assert not (drawn[other][..., :-1].sum(-1) == keep[:, :-1].sum(-1)).all()
    assert (drawn["kind"][..., -1].sum(1) == keep[:, -1].sum()).all()
    assert len(set(drawn["size"][..., -1].sum(1).tolist())) > 1
    assert torch.equal(drawn["layer"], random_circuits(keep, 50, seed=1))
    with pytest.raises(UserError, match="profile"):
        random_circuits(keep, 5, seed=0, profile="mlp")


def test_no_more_random_circuits_than_there_are():
    keep = torch.tensor([[True, False, False, True], [True, True, True, False]])
    drawn = random_circuits(keep, 50, seed=0)
    assert sorted(drawn[:, 0, :3].int().tolist()) == [[0, 0, 1], [0, 1, 0]]
    alone = torch.ones(2, 4, dtype=torch.bool)
    assert len(random_circuits(alone, 50, seed=0)) == 0
    model = make_model()
    ablation = Ablation(model, *solved_pairs(model))
    control = against_random(ablation, ablation.full, 10, seed=0)
    assert control["count"] == 0 and control["p"] == 1 and control["mean"] is None


def test_cross_task_matrix_and_overlap(planted):
    ablation, keep = planted
    model = ablation.model
    other = Ablation(model, *planted_pairs(8, seed=9))
    circuits = {"a": keep, "b": ~keep}
    table = cross_task({"x": ablation, "y": other}, circuits, seed=0).set_index(["circuit", "data"])
    assert (
        len(table) == 4
        and table.loc[("a", "y"), "percent"] > 90 > 30 > table.loc[("b", "x"), "percent"]
    )
    own = ev.faithfulness(other, keep[None], seed=0)["percent"].item()
    assert table.loc[("a", "y"), "percent"] == pytest.approx(own)
    graph = Graph(1, 3, 3)
    sets = {"a": torch.tensor([[1, 1, 0, 1]]).bool(), "b": torch.tensor([[0, 1, 1, 0]]).bool()}
    (row,) = overlap(graph, sets).to_dict("records")
    assert row["heads_jaccard"] == pytest.approx(1 / 3) and row["heads_shared"] == "L0.H1"
    assert row["mlps_jaccard"] == 0 and row["mlps_shared"] == ""


def test_circuit_files_round_trip(tmp_path, planted):
    model, keep = planted[0].model, planted[1].clone()
    keep[1, -1] = True
    path = tmp_path / "circuit.json"
    facts = {"faithfulness": {"percent": 99.5}, "settings": {"threshold": 20}}
    edges = ["L0.H2 -> L2.H1.k", "L2.H1 -> logits"]
    circuit = make_circuit(
        model, keep, task="induction", method="pruning", edges=edges, facts=facts
    )
    write_circuit(path, circuit, {"seed": 1})
    raw = json.loads(path.read_text())
    assert (
        raw["heads"] == [[0, 2], [2, 1]]
        and raw["mlps"] == [1]
        and raw["faithfulness"] == facts["faithfulness"]
    )
    again = read_circuit(path, model)
    assert again == circuit and torch.equal(again.keep, keep) and again.edges == tuple(edges)
    assert read_provenance(path)["seed"] == 1


def test_published_files_are_read(tmp_path, planted):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"heads": [[0, 2], [2, 1]], "mlps": []}))
    assert torch.equal(read_circuit(path, planted[0].model).keep, planted[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 12}, "12 layers"),
        ({"model_hash": "0" * 64}, "other weights"),
        ({"heads": [[7, 0]]}, "L7.H0"),
        ({"edges": ["L2.H1 -> L0.H2.q"]}, "reads before"),
        ({"mlps": None}, "heads and mlps"),
    ],
)
def test_files_that_do_not_match_the_model_are_refused(change, message, tmp_path, planted):
    model, path = planted[0].model, tmp_path / "circuit.json"
    write_circuit(path, make_circuit(model, planted[1], task="t", method="m"), {})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        read_circuit(path, model)
    assert str(path) in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        read_circuit(tmp_path / "none.json", model)
