"""Studies of a task from end to end: the planted circuit is found by every one, and a killed one continues."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from planted import CIRCUIT, planted_model, planted_pairs

from mechatlas.circuits import node_study
from mechatlas.circuits.compare import cross_task_table, file_questions, generation_tables
from mechatlas.circuits.component_study import study_components
from mechatlas.circuits.components import Graph
from mechatlas.circuits.edge_study import study_edges
from mechatlas.circuits.node_study import study_nodes
from mechatlas.circuits.patching_study import strongest_rows
from mechatlas.circuits.published import beside_published
from mechatlas.circuits.steps import Steps
from mechatlas.circuits.task_data import TaskData, answer_role, repeat_role
from mechatlas.config import load_schema
from mechatlas.io import UserError, write_json
from mechatlas.tasks.pairs import PairBatch

OPTIONS = {"seed": 0, "confidence": 0.9, "bootstrap": 50}


class Words:
    """A tokenizer whose tokens are numbers."""

    bos_id = 0

    def encode(self, text):
        return [int(word) for word in text.split()]

    def strings(self, ids):
        return [f" {i}" for i in ids]


def settings_of(section: str, **changes):
    keys = load_schema()["properties"]["circuits"]["properties"][section]["properties"]
    return {name: schema["default"] for name, schema in keys.items()} | changes


def planted_data(count: int = 16) -> TaskData:
    clean, corrupted, answers, wrong = (x.numpy() for x in planted_pairs(count))
    row = np.arange(count)
    first = np.array([int(np.flatnonzero(tokens == tokens[-1])[0]) for tokens in clean])
    roles = {"previous": first, "source": first + 1, "end": np.full(count, clean.shape[1] - 1)}
    assert (clean[row, roles["source"]] == answers).all()
    split = tuple(["discovery"] * (count // 2) + ["held_out"] * (count - count // 2))
    batch = PairBatch(
        "planted", clean, corrupted, answers, wrong, roles, ("one",) * count, split, False
    )
    return TaskData("m", "planted", planted_model(), Words(), batch, {"model": "m"})


@pytest.fixture(scope="module")
def data() -> TaskData:
    return planted_data()


def test_roles_are_read_off_the_prompts(data):
    assert answer_role(data.batch) == "source"
    assert (
        repeat_role(data.batch) is None
    )  # the repeated word is the last one, which has no other role


def test_components_of_the_planted_circuit_stand_out(data, tmp_path):
    patching = settings_of("patching", points=["z", "resid_pre"], metrics=["logit_difference"])
    parts = Steps(tmp_path, data, {}, "circuits/patching.py").parts
    tables = study_components(
        data, {"kind": "induction"}, patching, settings_of("roles"), parts=parts, **OPTIONS
    )
    effects = tables["effects"]
    best = effects.query("point == 'z' and place == 'all' and direction == 'denoise'")
    assert set(best.nlargest(2, "effect")["component"]) == set(CIRCUIT)
    heads = tables["roles"].set_index("component")["labels"]
    assert "induction" in heads["L2.H1"] and "mover" in heads["L2.H1"].split(", ")
    assert "previous token" in heads["L0.H2"]
    # One list of effects per row, in the order of the prompts; their mean is the mean of ratios.
    pairs = tables["pair_effects"]
    assert len(pairs) == len(effects) and set(pairs["effect"].map(len)) == {8}
    row = pairs.query("point == 'z' and place == 'all' and component == 'L2.H1'").iloc[0]
    same = effects.query("point == 'z' and place == 'all' and component == 'L2.H1'").iloc[0]
    assert np.mean(row["effect"]) == pytest.approx(same["mean_of_ratios"], rel=1e-4)
    assert (tmp_path / parts.folder.name).exists()


def test_strongest_rows_hold_the_top_and_all_above_the_threshold():
    table = pd.DataFrame({"component": list("abcd"), "effect": [0.1, -0.9, 0.5, 0.01]})
    table = table.assign(
        point="z", direction="noise", place="all", metric="kl", low=0.0, high=1.0, p_fdr=0.5
    )
    assert strongest_rows(table, 1, 0.3)["component"].tolist() == ["b", "c"]
    assert strongest_rows(table, 3, 0.3)["above"].tolist() == [True, True, False]


def nodes_of(data, folder, **changes):
    small = {"stability_samples": 2, "random_circuits": 20, "subset_samples": 2} | changes
    settings = settings_of("nodes", **small)
    kept = Steps(folder, data, {"nodes": settings}, "circuits/pruning.py")
    return study_nodes(data, settings, log=kept.log, parts=kept.parts, **OPTIONS)


def test_nodes_of_the_planted_circuit_are_found_and_judged(data, tmp_path):
    study = nodes_of(data, tmp_path)
    graph = Graph.of(data.model.config)
    for circuit in study.circuits.values():
        assert graph.names(circuit.keep.numpy()) == list(CIRCUIT)
    facts = study.circuits["greedy"].facts
    assert facts["faithfulness"]["held_out"]["percent"] == pytest.approx(100, abs=5)
    assert facts["least_harmful_jaccard"] == facts["stability"]["jaccard"] == 1
    assert facts["controls"]["size"]["max"] < 50
    assert facts["minimality"]["worst"] > 50
    assert json.dumps(facts)
    tables = study.tables
    frequency = tables["stability"].set_index("component")["frequency"]
    assert frequency.loc[list(CIRCUIT)].eq(1).all() and frequency.drop(list(CIRCUIT)).eq(0).all()
    assert set(tables["effects"]["base"]) == {"full", "circuit"}
    # The last point of each curve on discovery prompts is the circuit's own score.
    last = tables["curve"].query("split == 'discovery'").groupby("procedure").last()["percent"]
    assert last["greedy"] == pytest.approx(study.circuits["greedy"].facts["score"], abs=1e-6)
    assert tables["pruning"]["nodes"].min() == len(CIRCUIT)


def test_a_killed_study_of_nodes_decides_nothing_twice(data, tmp_path, monkeypatch):
    whole = nodes_of(data, tmp_path / "whole")
    real, ran = node_study.stability, []

    def dying(*arguments, **options):
        ran.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(node_study, "stability", dying)
    with pytest.raises(KeyboardInterrupt):
        nodes_of(data, tmp_path / "killed")
    monkeypatch.setattr(node_study, "stability", real)
    again = nodes_of(data, tmp_path / "killed")
    for name in whole.circuits:
        assert again.circuits[name].keep.equal(whole.circuits[name].keep)
        assert again.circuits[name].facts == whole.circuits[name].facts
        assert again.evaluated[name] < whole.evaluated[name]
    pd.testing.assert_frame_equal(again.tables["pruning"], whole.tables["pruning"])


@pytest.mark.parametrize("ablation", ["zero", "resample", "mean_clean", "legacy"])
def test_every_ablation_runs_to_the_end(ablation, tmp_path):
    study = nodes_of(planted_data(8), tmp_path, ablation=ablation, random_circuits=2, num_samps=3)
    assert study.circuits["greedy"].facts["settings"]["ablation"] == ablation
    assert bool(study.circuits["greedy"].keep[2, 1])


def edges_of(data, folder, **changes):
    small = {
        "exact_prompts": 2, "acdc_prompts": 2, "random_sets": 4, "curve_random_sets": 2,
        "shares": [0.01, 0.1, 1.0], "path_receivers": 1, "target": 0.9, "acdc_threshold": 0.2,
    } | changes  # fmt: skip
    settings = settings_of("edges", **small)
    kept = Steps(folder, data, settings, "circuits/acdc.py")
    return study_edges(data, settings, log=kept.log, parts=kept.parts, **OPTIONS)


def test_edges_of_the_planted_circuit_are_found(data, tmp_path):
    study = edges_of(data, tmp_path)
    wanted = {"embed -> L0.H2.v", "L0.H2 -> L2.H1.k", "L2.H1 -> logits"}
    assert wanted <= set(study.circuit.edges) and len(study.circuit.edges) <= 8
    assert wanted <= set(study.acdc.edges)
    facts = study.circuit.facts
    assert facts["faithfulness"]["held_out"]["value"] > 0.8
    assert facts["control"]["max"] < facts["faithfulness"]["held_out"]["value"]
    assert study.acdc.facts["orders"]["count"] == 2 and json.dumps(facts)
    effects = study.tables["effects"]
    exact = effects[effects["method"] == "exact"].set_index(["source", "destination"])["score"]
    assert exact.abs().idxmax() == ("L2.H1", "logits")
    assert effects.groupby("method").size().eq(Graph.of(data.model.config).n_edges).all()
    agreement = study.tables["agreement"].query("kind == 'logits'")
    assert (agreement["pearson"] > 0.9).all()
    paths = study.tables["paths"].query("receiver == 'logits' and not through_mlps")
    assert paths.set_index("sender")["drop"].idxmax() == "L2.H1"
    assert list(study.tables["curve"].columns[:5]) == [
        *("method", "signed", "share", "size", "realised"),
    ]


def test_edges_can_do_without_exact_effects_and_acdc(tmp_path):
    changes = {"exact_prompts": 0, "acdc_orders": 0, "methods": ["eap"], "rank_by": "eap"}
    study = edges_of(planted_data(8), tmp_path, **changes)
    assert study.acdc.edges == () and study.acdc.facts["orders"] == {"count": 0}
    assert len(study.tables["agreement"]) == 0
    assert set(study.tables["effects"]["method"]) == {"eap"}


def test_circuits_are_compared_by_their_removal(data):
    circuit = torch.from_numpy(Graph.of(data.model.config).node_set(CIRCUIT))
    nothing = torch.zeros_like(circuit)
    tasks = {"planted": data}
    ablation = {"ablation": "mean", "metric": "logit_difference"}
    table = cross_task_table(tasks, {"planted": circuit, "none": nothing}, ablation, seed=0)
    percent = table.set_index("circuit")["percent"]
    assert percent["planted"] > 90 and abs(percent["none"]) < 10
    asked = {"one": (data.held_out.clean.tolist(), data.held_out.answers[:, None].tolist())}
    settings = {"random_sets": 5, "ablation": "zero"}
    found, sets = generation_tables(tasks, {"planted": circuit}, settings, asked, seed=0)
    row = found.iloc[0]
    assert row["full"] == 1 and row["exact"] < 0.5 < row["random_mean"]
    assert len(sets) == row["count"] and row["removed"] == 2
    # A model that says no answer right leaves nothing to remove it from.
    unsaid = asked | {"unsaid": ([], [])}
    again, _ = generation_tables(tasks, {"planted": circuit}, settings, unsaid, seed=0)
    pd.testing.assert_frame_equal(again, found)
    nothing, sets = generation_tables(
        tasks, {"planted": circuit}, settings, {"unsaid": ([], [])}, seed=0
    )
    assert len(nothing) == len(sets) == 0 and list(nothing) == list(found)


def test_questions_of_a_file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"task": "sums", "prompt": "1 2", "answer": " 3 4"}\n')
    assert file_questions(path, Words(), bos=True) == {"sums": ([[0, 1, 2]], [[3, 4]])}
    path.write_text('{"task": "sums", "prompt": "1 2"}\n')
    with pytest.raises(UserError, match=r"line 1.*task, prompt and answer"):
        file_questions(path, Words(), bos=True)
    path.write_text('{"task": "sums", "prompt": "1", "answer": "2"}\n')
    with pytest.raises(UserError, match="joins the prompt with its answer"):
        file_questions(path, Words(), bos=True)


def published(tmp_path, **row):
    rows = [{"task": "planted", "quantity": "in circuit", "item": "L0.H2", "value": 1, **row}]
    write_json(tmp_path / "numbers.json", {"source": "someone", "rows": rows}, {})
    return tmp_path / "numbers.json"


def test_published_numbers_are_put_beside_ours(data, tmp_path):
    from mechatlas.circuits.circuit_file import write_circuit
    from mechatlas.io import write_table

    study = nodes_of(data, tmp_path / "steps")
    folder = tmp_path / "tasks" / "planted" / "nodes"
    write_circuit(folder / "circuit.json", study.circuits["greedy"], {})
    write_table(folder / "effects.parquet", study.tables["effects"], {})
    cross = pd.DataFrame({"circuit": ["planted"], "data": ["planted"], "percent": [90.0]})
    write_table(tmp_path / "cross.parquet", cross, {})

    def ours(**row):
        path = published(tmp_path, **row)
        table = beside_published(path, tmp_path / "tasks", tmp_path / "cross.parquet")
        return table.iloc[0] if len(table) else None

    assert ours()["ours"] == 1 and ours()["difference"] == 0
    assert ours(item="L0.H3")["difference"] == -1
    assert np.isnan(ours(item="L9.H9")["difference"])  # a smaller model has no such head
    assert (
        ours(quantity="circuit percent on this task", item="planted", value=80)["difference"] == 10
    )
    left = ours(quantity="percent left without it", item="L2.H1", value=50.0)
    assert left["ours"] < 20 and left["difference"] == pytest.approx(left["ours"] - 50)
    assert ours(task="absent") is None
    with pytest.raises(UserError, match="quantity 'size' is not known"):
        ours(quantity="size")
