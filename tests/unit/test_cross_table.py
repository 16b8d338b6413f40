"""Words beside causes: what texts say, agreement with its controls, written latents, and the joined table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fake_circuits import write_circuits
from sklearn.metrics import cohen_kappa_score

from mechatlas.figures.atlas.heads import written
from mechatlas.io import read_json, read_table, rng_for, write_table
from mechatlas.models.transformer import load
from mechatlas.score.agreement import (
    Draws,
    Resamples,
    cohens_kappa,
    mean_difference,
    shuffles,
    with_control,
)
from mechatlas.score.behaviours import BEHAVIOURS, says_idle, stated_share, word_class
from mechatlas.score.cross_table import (
    TaskFiles,
    Thresholds,
    agreement,
    cross_table,
    disagreements,
    read_tasks,
    written_table,
)
from mechatlas.score.written_latents import reading_shares

LIMITS = Thresholds(0.3, 0.05)


@pytest.mark.parametrize(
    ("text", "behaviour", "share"),
    [
        ("Attends to the previous token (93 %); otherwise rests on BOS (7 % or more).", "previous_token", 0.93),
        ("It looks at the previous token.", "previous_token", 1.0),
        ("often to the token 2 positions back (15 %) and the previous token (12 %); 9 % rests on BOS.",
         "previous_token", 0.12),
        ("By its score tables attends mostly to the token after every earlier occurrence of the current token "
         "(induction) (62 % off BOS); strongest pair", "induction", 0.62),
        ("from names to the token after every earlier occurrence of the last 2 tokens (induction) (15 %); often to the "
         "token after the latest earlier occurrence of the current token (induction) (43 %)", "induction", 0.43),
        ("every earlier copy of the same token (40 %)", "duplicate_token", 0.4),
        ("Attends to every earlier comma (40 %).", "induction", 0.0),
        ("the first token of the line (13 %) and the latest delimiter (30 %)", "previous_token", 0.0),
    ],
)  # fmt: skip
def test_words_give_a_behaviour_its_share(text: str, behaviour: str, share: float) -> None:
    assert stated_share(text, BEHAVIOURS[behaviour].phrases) == pytest.approx(share)


def test_class_of_words_is_what_most_is_said_of() -> None:
    assert word_class("Attends to the previous token (60 %) and the latest delimiter (30 %).") == (
        "previous token"
    )
    assert word_class("often to the latest delimiter (24 %)") == "mixed"
    assert word_class("") == "not explained"
    for text in ("Rests on BOS.", "Attends to all (2 %); otherwise rests on BOS (98 % or more)."):
        assert says_idle(text) and word_class(text) == "rests on BOS"
    assert not says_idle("Attends to the previous token; 95 % rests on BOS.")


def test_kappa_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 20, 40)) < rng.random((2, 20, 1))
    expected = [cohen_kappa_score(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(cohens_kappa(first, second), expected)
    assert np.isnan(cohens_kappa(np.ones((1, 4), bool), np.ones((1, 4), bool)))
    wide = cohens_kappa(first.reshape(20, 10, 4), second.reshape(20, 10, 4))
    np.testing.assert_allclose(wide, expected)


def test_mean_difference_is_that_of_two_means() -> None:
    rng = np.random.default_rng(0)
    named, values = rng.random((5, 12)) < 0.4, rng.standard_normal((5, 12))
    expected = [v[n].mean() - v[~n].mean() for n, v in zip(named, values, strict=True)]
    np.testing.assert_allclose(mean_difference(named, values), expected)
    assert np.isnan(mean_difference(np.zeros((1, 4), bool), np.ones((1, 4))))


def test_permutations_stay_within_their_groups_and_move() -> None:
    groups = np.array([0, 7, 0, 7, 0, 0, 7])
    orders = shuffles(groups, 4000, np.random.default_rng(0))
    assert (groups[orders] == groups).all() and (np.sort(orders, axis=1) == np.arange(7)).all()
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24 * 6 and counts.max() < 3 * counts.mean()


def control(layers: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict:
    resamples = Resamples(layers, Draws(300, 0.95), rng_for(seed, "test"))
    return with_control(cohens_kappa, first, second, resamples)


def test_control_tells_heads_from_layers() -> None:
    """Words that fit every head of a layer alike agree by layer only; words that fit single heads agree by head."""
    layers = np.repeat(np.arange(6), 8)
    by_layer = layers == 2
    by_head = np.random.default_rng(1).random(48) < 0.4
    first = control(layers, by_layer, by_layer)
    assert first["value"] == 1 and first["permuted"] == 1 and first["p"] == 1
    assert abs(first["permuted_anywhere"]) < 0.1 and first["p_anywhere"] == 1 / 301
    second = control(layers, by_head, by_head)
    assert second["value"] == 1 and second["p"] == 1 / 301 and abs(second["permuted"]) < 0.25
    assert second["low"] == second["high"] == 1


def test_chance_agreement_is_not_significant_too_often() -> None:
    layers = np.repeat(np.arange(4), 10)
    said, seen = np.random.default_rng(0).random((2, 200, 40)) < 0.4
    ps = [
        control(layers, *pair, seed)["p"] for seed, pair in enumerate(zip(said, seen, strict=True))
    ]
    assert np.mean(np.array(ps) <= 0.1) < 0.17


def test_latents_that_heads_write_to_are_those_of_the_whole_matrix() -> None:
    """Against the product of whole matrices; a latent that reads what a head writes stands out."""
    model = load("resources/models/demo-2l", dtype="float64")
    layer, config = 1, model.config
    weights = model.weights.layers[layer]
    values = weights.w_qkv[:, -config.n_heads * config.d_head :].numpy()
    values = weights.norm1.numpy()[:, None] * values
    out = weights.w_o.numpy()
    rng = np.random.default_rng(0)
    encoder = rng.standard_normal((400, config.d_model))
    head = 5
    part = slice(head * config.d_head, (head + 1) * config.d_head)
    whole = values[:, part] @ out[part]
    encoder[7] = np.linalg.svd(whole)[2][0] * 3.0
    import torch

    found = reading_shares(model, layer, torch.from_numpy(encoder)).numpy()
    unit = encoder / np.linalg.norm(encoder, axis=1, keepdims=True)
    expected = config.d_model * ((whole @ unit.T) ** 2).sum(0) / (whole**2).sum()
    np.testing.assert_allclose(found[head], expected, rtol=1e-9)
    assert found[head].argmax() == 7
    others = np.delete(found[head], 7)
    assert others.mean() == pytest.approx(1, abs=0.25)


def summary() -> pd.DataFrame:
    """Explanations of the heads of `fake_circuits`: 3 layers of 4 heads."""
    layer, head = np.indices((3, 4)).reshape(2, -1)
    texts = ["Rests on BOS."] + ["Attends to the previous token (90 %)."] * 5 + [""] * 2
    texts += ["Attends to every earlier comma (50 %)."] * 4
    numbers = {
        name: 0.5 for name in ("iou", "iou_low", "iou_high", "iou_without_sink", "loss_recovered")
    }
    numbers |= {name: -0.1 for name in ("advantage", "advantage_low", "advantage_high")}
    return pd.DataFrame(
        {
            **{"layer": layer, "head": head, "explainer": "programs", "text": texts, **numbers},
            **{"kind": "rules", "status": "scored", "best_control": "swapped", "cluster": np.nan},
            **{"cluster_label": "", "beats_every_control": [True] * 8 + [False] * 4},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[TaskFiles]:
    folder = tmp_path_factory.mktemp("cross")
    write_circuits(folder)
    kinds = {"numerals": "sequence", "ioi": "ioi"}
    paths = {
        **{"roles": "roles/heads", "nodes": "nodes/effects", "patching": "patching/effects"},
        **{name: f"lens/{name}" for name in ("ov", "ov_members", "qk_members")},
    }
    files = {
        name: [f"{folder}/tasks/{task}/{path}.parquet" for task in kinds]
        for name, path in paths.items()
    }
    circuits = {"circuits": "nodes/circuit", "least_harmful": "nodes/circuit"}
    circuits["edge_circuits"] = "edges/circuit"
    for name, path in circuits.items():
        files[name] = [f"{folder}/tasks/{task}/{path}.json" for task in kinds]
    return read_tasks(kinds, files)


def test_table_holds_what_the_files_say(tasks: list[TaskFiles]) -> None:
    table = cross_table({"wiki": summary(), "qa": summary()}, tasks, {})
    assert len(table) == 24 and table["source"].value_counts().to_dict() == {"wiki": 12, "qa": 12}
    row = table[(table["component"] == "L2.H1") & (table["source"] == "qa")].iloc[0]
    task = tasks[1]
    patched = task.patching.query(
        "component == 'L2.H1' and point == 'z' and direction == 'denoise'"
    )
    assert row["ioi.effect"] == patched["effect"].item()
    full = task.nodes.query("component == 'L2.H1' and base == 'full'")
    assert row["ioi.drop"] == full["drop"].item() and row["ioi.drop_p_fdr"] == full["p_fdr"].item()
    roles = pd.concat([t.roles for t in tasks]).query("component == 'L2.H1'")
    assert row["shows_induction"] == pytest.approx(roles["induction"].mean())
    inside = {m for m, circuit in task.circuits.items() if [2, 1] in circuit["heads"]}
    assert set(filter(None, row["ioi.circuits"].split(", "))) == inside
    assert row["says_idle"] == False and table.iloc[0]["says_idle"]  # noqa: E712
    assert table["class"].iloc[1] == "previous token"


def test_scores_of_a_judge_become_columns() -> None:
    both = {"layer": 1, "head": 2, "explainer": "programs", "scorer": "fuzzing", "metric": "auc"}
    own = {"value": 0.8, "low": 0.7, "high": 0.9, "gain_over_lookup": 0.3, "beats_control": None}
    rows = [
        {**both, **own, "control": "none"},
        {**both, **own, "control": "swapped", "value": 0.5, "beats_control": True},
        {
            **both,
            **own,
            "control": "none",
            "explainer": "other",
        },  # of an explainer that is not here
        {**both, **own, "control": "none", "metric": "f1"},
        {**both, **own, "control": "none", "layer": -1, "head": -1, "explainer": "planted"},
        {**both, "control": "none", "scorer": "intruder", "metric": "", "value": np.nan},
    ]
    table = cross_table({"wiki": summary(), "qa": summary()}, [], {}, {"qa": pd.DataFrame(rows)})
    plain = cross_table({"wiki": summary(), "qa": summary()}, [], {})
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    names = [name for name in table.columns if name not in plain.columns]
    ends = ("", "_low", "_high", "_over_lookup", "_beats_other")
    assert names == [f"judge.fuzzing.auc{end}" for end in ends]
    known = table.dropna(subset=["judge.fuzzing.auc"])
    (row,) = known.to_dict("records")
    assert (row["component"], row["source"], row["explainer"]) == ("L1.H2", "qa", "programs")
    assert [row[name] for name in names] == [0.8, 0.7, 0.9, 0.3, True]


def test_a_dictionary_that_no_head_writes_to_leaves_an_empty_column(tmp_path) -> None:
    columns = [
        "component",
        "layer",
        "head",
        "rank",
        "latent_layer",
        "latent",
        "unit",
        "times_chance",
    ]
    latents = {"wiki/transcoder": pd.DataFrame(columns=columns)}
    table = cross_table({"wiki": summary()}, [], latents)
    write_table(tmp_path / "table.parquet", table, {})
    write_table(tmp_path / "written.parquet", written_table(latents), {})
    assert read_table(tmp_path / "table.parquet")["latents.wiki/transcoder"].isna().all()
    assert written(read_table(tmp_path / "written.parquet")) == {}


def test_disagreements_are_heads_whose_words_and_numbers_differ(tasks: list[TaskFiles]) -> None:
    table = cross_table({"wiki": summary()}, tasks, {})
    found = pd.DataFrame(disagreements(table, tasks, LIMITS))
    by_head = table.set_index("component")
    shown = {name: by_head[f"shows_{name}"] >= 0.3 for name in BEHAVIOURS}
    explained = by_head["text"] != ""
    missed = found[(found["kind"] == "shown, not named") & (found["what"] == "induction")]
    assert set(missed["component"]) == set(by_head.index[shown["induction"] & explained])
    wrong = found[(found["kind"] == "named, not shown") & (found["what"] == "previous token")]
    named = by_head["says_previous_token"] >= 0.3
    assert set(wrong["component"]) == set(by_head.index[named & ~shown["previous_token"]])
    needed = by_head[[f"{t.name}.drop" for t in tasks]].abs().ge(5).to_numpy()
    needed &= by_head[[f"{t.name}.drop_p_fdr" for t in tasks]].lt(0.05).to_numpy()
    fails = set(found.loc[found["kind"] == "needed, words fail", "component"])
    assert fails == set(
        by_head.index[needed.any(1) & ~by_head["beats_every_control"].astype(bool) & explained]
    )
    assert list(found["weight"]) == sorted(found["weight"], reverse=True)


def test_agreement_counts_and_survives_without_tasks(tasks: list[TaskFiles]) -> None:
    draws = Draws(50, 0.95)
    table = cross_table({"wiki": summary()}, tasks, {})
    (found,) = agreement(table, tasks, LIMITS, draws, 0)
    assert found["heads"] == 10
    one = found["behaviours"]["previous_token"]
    rows = table[table["text"] != ""]
    assert one["named"] == 5 and one["shown"] == (rows["shows_previous_token"] >= 0.3).sum()
    assert {(c["behaviour"], c["task"]) for c in found["causes"]} == {
        (b, "ioi") for b in BEHAVIOURS
    }
    said = rows["says_previous_token"].ge(0.3).to_numpy()
    drops = rows["ioi.drop"].to_numpy()
    cause = next(c for c in found["causes"] if c["behaviour"] == "previous_token")
    assert cause["value"] == pytest.approx(drops[said].mean() - drops[~said].mean())
    assert agreement(table, tasks, LIMITS, draws, 0) == [found]
    (bare,) = agreement(cross_table({"wiki": summary()}, [], {}), [], LIMITS, draws, 0)
    assert (
        bare["kappa"] is None
        and disagreements(cross_table({"wiki": summary()}, [], {}), [], LIMITS) == []
    )


def test_files_are_the_same_bytes_each_time(tasks: list[TaskFiles], tmp_path) -> None:
    from asked_world import script

    csv = tmp_path / "summary.csv"
    summary().to_csv(csv, index=False)
    for name in ("a", "b"):
        script("tabulate_heads").main(
            **{"summaries": [str(csv)], "weights": [], "latent_tables": [], "model": "none"},
            **{"name": "m", "sources": ["wiki"], "tasks": {}, "dictionaries": [], "seed": 0},
            **{"thresholds": {"attention": 0.3, "effect": 0.05}, "draws": 5, "confidence": 0.9},
            **{key: str(tmp_path / f"{name}.{key}") for key in ("table", "written", "agreement")},
        )
    for key in ("table", "written", "agreement"):
        assert (tmp_path / f"a.{key}").read_bytes() == (tmp_path / f"b.{key}").read_bytes()
    assert read_json(tmp_path / "a.agreement")["disagreements"] == []
    assert len(read_table(tmp_path / "a.table")) == 12
