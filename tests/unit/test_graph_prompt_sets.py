"""Sets of prompts, and sweeps of transcoders, against the single graphs and runs that they are made of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from clt_makers import make_clt
from edge_models import make_model

from mechatlas.circuits.graphs import prompt_set
from mechatlas.circuits.graphs.attribute import attribute
from mechatlas.circuits.graphs.graph import FEATURE
from mechatlas.circuits.graphs.influence import influence, scores
from mechatlas.circuits.graphs.prompt_set import make_prompt_set, slots_of
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.graphs.targets import logit_difference
from mechatlas.dictionaries.clt_replacement import replacement_hooks
from mechatlas.dictionaries.sweep_tables import at_equal_sparsity, sweep_table
from mechatlas.figures.transcoders import sweep_frontier
from mechatlas.io import UserError, write_table
from mechatlas.tasks.pairs import Pair, stack_pairs
from mechatlas.tasks.prompt_files import write_prompts

SETTINGS = {
    **{"split": "held_out", "max_features": None, "kept_mass": 1.0, "edges": 50},
    **{"ablated": 3, "new_tokens": 3, "bootstrap": 200, "confidence": 0.9, "seed": 0},
}


class Words:
    """A tokenizer that names tokens by their numbers."""

    hash = "words"

    def decode(self, tokens):
        return " ".join(map(str, tokens))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model = make_model()
    clt = make_clt(d=model.config.d_model)
    rng = np.random.default_rng(0)
    pairs = [
        Pair(
            clean=(0, *rng.integers(1, 40, 5).tolist()),
            corrupted=(0, *rng.integers(1, 40, 5).tolist()),
            answer=int(rng.integers(1, 20)),
            wrong=int(rng.integers(20, 40)),
            roles={"subject": 2, "end": 5},
            group="g",
            split="held_out" if i % 2 else "discovery",
        )
        for i in range(8)
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    batch = stack_pairs("toy", pairs, True)
    write_prompts(path, batch, {}, {"tokenizer": Words.hash})
    made = make_prompt_set(model, clt, Words(), path, prompts=4, **SETTINGS)
    return model, clt, path, batch.of_split("held_out"), made


def graph_of(world, row):
    model, clt, _, batch, _ = world
    run = run_prompt(model, clt, torch.from_numpy(batch.clean[row]))
    target = logit_difference(run, int(batch.answers[row]), int(batch.wrong[row]))
    return run, attribute(run, [target])


def test_scores_are_those_of_each_prompts_graph_and_their_mean(world):
    model, clt, _, batch, made = world
    table = made.scores.set_index(["metric", "prompt"])
    differences = []
    for row in range(4):
        _, graph = graph_of(world, row)
        for name, value in scores(graph).items():
            assert table.loc[(name, row), "value"] == pytest.approx(value)
        tokens = torch.from_numpy(batch.clean[row])[None]
        with torch.inference_mode():
            logits = model.forward(tokens, replacement_hooks(clt))[0, -1]
        differences.append(float(logits[batch.answers[row]] - logits[batch.wrong[row]]))
        found = table.loc[("logit_difference_replacement", row), "value"]
        assert found == pytest.approx(differences[-1])
    mean = table.loc[("logit_difference_replacement", -1)]
    assert mean["value"] == pytest.approx(np.mean(differences)) and mean["prompts"] == 4
    assert min(differences) <= mean["low"] < mean["value"] < mean["high"] <= max(differences)
    correct = table.loc[("correct_replacement", -1), "value"]
    assert correct == np.mean(np.array(differences) > 0)


def test_positions_are_called_by_their_roles(world):
    assert slots_of(world[3], 0) == ["0", "1", "subject", "3", "4", "end"]
    ends = world[4].edges["source"].str.rsplit("@", n=1).str[-1]
    assert {"subject", "end"} & set(ends) and not {"2", "5"} & set(ends)


def test_influence_of_features_is_the_mean_share(world):
    shares: dict = {}
    for row in range(4):
        _, graph = graph_of(world, row)
        score = influence(graph.edges, graph.target_weights)
        whole = score[graph.kind == FEATURE].sum()
        for node in np.flatnonzero(graph.kind == FEATURE):
            key = (int(graph.layer[node]), int(graph.feature[node]))
            shares[key] = shares.get(key, 0) + score[node] / whole / 4
    table = world[4].features.set_index(["layer", "feature"])
    assert set(table.index) == set(shares)
    assert np.allclose(table["influence"], [shares[key] for key in table.index])
    assert table["influence"].is_monotonic_decreasing and table["ablated"].sum() == 3


def test_continuations_are_greedy_runs_under_each_change(world):
    model, clt, _, batch, made = world
    table = made.generation.set_index(["prompt", "variant"])
    assert set(made.generation["variant"]) == set(prompt_set.VARIANTS)
    for row in range(4):
        for variant, hooks in (("model", None), ("replacement", replacement_hooks(clt))):
            tokens = torch.from_numpy(batch.clean[row])[None]
            with torch.inference_mode():
                for _ in range(3):
                    following = model.forward(tokens, hooks)[:, -1].argmax(-1, keepdim=True)
                    tokens = torch.cat([tokens, following], 1)
            found = table.loc[(row, variant)]
            assert found["continuation"] == Words().decode(tokens[0, -3:].tolist())
            assert found["answer_first"] == (int(tokens[0, -3]) == batch.answers[row])
    assert (table.xs("model", level="variant")["same"] == 1).all()


def test_the_random_control_has_as_many_features_in_each_layer(world):
    features = world[4].features
    drawn = prompt_set._random_like(features, 0)
    chosen = features[features["ablated"]]
    assert drawn["layer"].value_counts().to_dict() == chosen["layer"].value_counts().to_dict()
    assert not drawn["ablated"].any()


def test_random_features_are_active_in_as_many_prompts_as_the_ablated():
    table = pd.DataFrame({"layer": 0, "feature": range(40), "prompts": [12] * 10 + [1] * 30})
    table["ablated"] = table["feature"] < 5
    for seed in range(5):
        assert (prompt_set._random_like(table, seed)["prompts"] == 12).all()
    rare = table.assign(prompts=[12] * 6 + [3] * 4 + [1] * 30)
    assert sorted(prompt_set._random_like(rare, 0)["prompts"]) == [3, 3, 3, 3, 12]


def test_a_share_of_prompts_has_a_width_where_all_are_right():
    right = [{"correct": 1.0, "replacement": 0.5 + row / 100} for row in range(12)]
    table = prompt_set.score_table(right, bootstrap=200, confidence=0.95, seed=0)
    share = table[(table["metric"] == "correct") & (table["prompt"] == -1)].iloc[0]
    # Wilson (1927): 12 of 12 leave n / (n + z^2) as the lower end.
    assert share["low"] == pytest.approx(12 / (12 + 1.959964**2), abs=1e-6)
    assert share["value"] == share["high"] == 1


def test_too_few_prompts_are_said(world):
    model, clt, path, _, _ = world
    with pytest.raises(UserError, match="4 prompts in the split held_out, but 5 are asked for"):
        make_prompt_set(model, clt, Words(), path, prompts=5, **SETTINGS)


# --- sweeps -----------------------------------------------------------------------------------------


def sweep_files(folder):
    """Write evaluations on two lines, fvu = a - l0 / 100, of two kinds and two seeds."""
    paths = []
    for kind, a in (("cross", 0.5), ("per_layer", 0.6)):
        for value in (4, 8, 16):
            for seed in (0, 1):
                l0 = value + 0.5 * seed
                rows = [("l0", l0), ("fvu", a - l0 / 100 + 0.01 * seed), ("kl", 1.0 / l0)]
                table = pd.DataFrame(rows, columns=["metric", "value"])
                table["low"], table["high"] = table["value"] - 0.01, table["value"] + 0.01
                path = folder / f"{kind}_{value}_{seed}.parquet"
                write_table(
                    path, table, {"decoders": kind, "value": value, "seed": seed, "features": 9}
                )
                paths.append(path)
    return paths


def test_a_sweep_is_one_table_and_kinds_are_compared_at_equal_sparsity(tmp_path):
    table = sweep_table(sweep_files(tmp_path))
    assert len(table) == 12 and list(table["decoders"].unique()) == ["cross", "per_layer"]
    found = at_equal_sparsity(table).query("metric == 'fvu'").set_index("decoders")
    middle = (4.5 + 16) / 2
    assert (found["l0"] == middle).all()
    for kind, a in (("cross", 0.5), ("per_layer", 0.6)):
        ends = [a - middle / 100 + 0.01 * seed for seed in (0, 1)]
        assert found.loc[kind, ["value", "low", "high"]].tolist() == pytest.approx(
            [np.mean(ends), *ends]
        )
    apart = table[(table["decoders"] == "cross") | (table["value"] == 4)].copy()
    apart.loc[apart["decoders"] == "per_layer", "l0"] += 100
    assert at_equal_sparsity(apart).empty


def test_the_frontier_shows_what_was_measured(tmp_path):
    table = sweep_table(sweep_files(tmp_path))
    figure = sweep_frontier(table)
    assert len(figure.axes) == 2  # no prompts, so no score
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    means = table[table["decoders"] == "cross"].groupby("value")["fvu"].mean()
    assert np.allclose(lines["cross-layer"].get_ydata(), means)
