"""Scores of latents' explanations: planted latents are explained and scored right, controls are not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from latent_results_world import EVENTS, latent_data, planted_rules, write_world

from mechatlas.explain.latents.fit import LatentFitSettings, explain_all
from mechatlas.explain.latents.fit_rules import correlation
from mechatlas.explain.latents.programs import parse_latent_program
from mechatlas.explain.latents.records import read_latent_explanations, swapped_latents
from mechatlas.io import UserError, read_table, write_jsonl
from mechatlas.score.latents.overall import latent_headlines
from mechatlas.score.latents.scoring import LatentScoring, variants_of
from mechatlas.score.latents.summary import LatentSummarySettings, pearson, variance_explained
from mechatlas.score.latents.tokens import LatentTruth, calibrate

CONTROLS = ("swapped", "shuffled", "random_direction")
SETTINGS = LatentSummarySettings(bootstrap=200, confidence=0.95, fdr=0.05, min_events=5, seed=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    paths = write_world(folder)
    data = latent_data(paths)
    records = explain_all(data, LatentFitSettings(), CONTROLS, 0)
    write_jsonl(folder / "programs.jsonl", records, {})
    return paths, data, read_latent_explanations([folder / "programs.jsonl"])


@pytest.fixture(scope="module")
def scores(world):
    paths, data, records = world
    events = read_table(paths["events"], filters=[("split", "==", "test")])
    return LatentScoring(data, records, events, {}, CONTROLS, 0.2, SETTINGS).run()


def value(scores, latent, metric, control="none"):
    row = scores.query("latent == @latent and metric == @metric and control == @control")
    assert len(row) == 1
    return row.iloc[0]


def test_planted_rules_come_back_with_a_score_above_95(world, scores):
    for latent in planted_rules():
        row = value(scores, latent, "correlation")
        assert row["value"] > 0.95 and row["status"] == "scored" and row["low"] <= row["value"]
        assert value(scores, latent, "correlation_top_and_random")["value"] > 0.95
        assert value(scores, latent, "variance_explained")["value"] > 0.9
        assert value(scores, latent, "precision")["value"] > 0.9
        assert value(scores, latent, "recall")["value"] > 0.9
        assert value(scores, latent, "average_precision")["value"] > 0.9


def test_controls_fail_and_are_beaten(scores):
    for latent in planted_rules():
        for control in CONTROLS:
            row = value(scores, latent, "correlation", control)
            # Two of the rules share a token, so one says something about the other.
            assert row["value"] < 0.7
            assert row["difference"] > 0.3 and row["q_value"] < 0.05 and row["beats_control"]
    assert set(scores["control"]) == {"none", "token_lookup", *CONTROLS}


def test_the_look_up_says_less_where_context_decides(scores):
    assert value(scores, 0, "correlation", "token_lookup")["value"] > 0.95
    assert value(scores, 3, "correlation", "token_lookup")["value"] < 0.3
    assert 0.3 < value(scores, 5, "correlation", "token_lookup")["value"] < 0.9
    row = value(scores, 5, "correlation", "token_lookup")
    assert row["difference_low"] > 0


def test_causal_scores_are_unscored_with_a_reason_without_measurements(scores):
    for metric in ("loss_recovered", "steering_auc"):
        row = value(scores, 0, metric)
        assert row["status"] == "unscored" and row["reason"] == "not measured"
        assert np.isnan(row["value"])


def test_scores_are_those_of_the_formulas(world):
    paths, data, records = world
    latent = data.latents[2]
    program = variants_of(records, CONTROLS, 0)["programs", "swapped"][latent.layer, latent.latent]
    events = read_table(paths["events"], filters=[("split", "==", "test")])
    mine = events[(events["layer"] == latent.layer) & (events["latent"] == latent.latent)]
    truth = LatentTruth(data, latent, mine, 0.2, 0)
    sums = truth.compare(program)
    predicted, true = program.predict(data.view("test"))[:, 1:], data.values(latent, "test")[:, 1:]
    total = sums.moments().sum(0)[None]
    assert pearson(total)[0] == pytest.approx(np.corrcoef(predicted.ravel(), true.ravel())[0, 1])
    assert pearson(total)[0] == pytest.approx(correlation(predicted, true))
    known = sums.calibration
    fitted = known.slope * predicted.astype(float) + known.level
    explained = 1 - ((true - fitted) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    assert variance_explained(total, known.slope, known.level)[0] == pytest.approx(explained)
    chosen = truth.chosen
    top = pearson(sums.moments("_top_and_random").sum(0)[None])[0]
    assert top == pytest.approx(np.corrcoef(predicted[chosen].ravel(), true[chosen].ravel())[0, 1])
    said, active = predicted >= known.threshold, true >= truth.least
    assert sums.decisions.sum(0).tolist() == [(said & active).sum(), said.sum(), active.sum()]
    assert sums.counts["active"].sum() == active.sum()
    assert sums.counts["other"].sum() == (~active).sum()
    negatives = mine[mine["role"] == "negative_similar"]
    assert sums.counts["negative_similar"].sum() == len(negatives) <= EVENTS.negatives


def test_calibration_is_least_squares_and_the_threshold_has_the_best_f1():
    rng = np.random.default_rng(0)
    x = np.round(rng.random((30, 20)), 1)
    y = 2 * x + 0.3 + 0.2 * rng.normal(size=x.shape)
    known = calibrate(x, y, 1.5)
    slope, level = np.polyfit(x.ravel(), y.ravel(), 1)
    assert known.slope == pytest.approx(slope) and known.level == pytest.approx(level)

    def f1(threshold):
        said, active = x >= threshold, y >= 1.5
        return 2 * (said & active).sum() / (said.sum() + active.sum())

    assert f1(known.threshold) == max(f1(t) for t in np.unique(x) if t > 0)


def test_a_latent_without_a_program_is_unscored_with_its_reason(world):
    paths, data, records = world
    silent = [dict(r) for r in records if r["control"] == "none"]
    silent[0] |= {"program": None, "text": "Active on names.", "reason": ""}
    events = read_table(paths["events"], filters=[("split", "==", "test")])
    found = LatentScoring(data, silent, events, {}, (), 0.2, SETTINGS).run()
    mine = found[found["latent"] == silent[0]["latent"]]
    assert (mine["status"] == "unscored").all() and mine["value"].isna().all()
    assert set(mine["reason"]) == {"a text without a program"}


def test_swapped_programs_are_those_of_other_latents(world):
    own = variants_of(world[2], (), 0)["programs", "none"]
    swapped = swapped_latents(own, 0)
    assert swapped.keys() == own.keys()
    assert all(swapped[key] != own[key] for key in own)
    assert sorted(map(str, swapped.values())) == sorted(map(str, own.values()))


def test_headlines_are_means_of_what_is_scored(world, scores):
    own = [r for r in world[2] if r["control"] == "none"]
    statistics = pd.DataFrame(
        {
            **{"layer": 0, "latent": range(12), "split": "train", "tokens": 100},
            **{"firing_rate": 0.1, "dead": False, "dense": True, "single_token": False},
        }
    )
    settings = {"bootstrap": 100, "confidence": 0.95, "seed": 0}
    numbers = latent_headlines(own, scores, statistics, settings)
    mine = numbers["explainers"]["programs"]
    rows = scores.query("metric == 'correlation' and control == 'none'")["value"]
    assert mine["means"]["correlation"]["value"] == pytest.approx(rows.mean())
    assert mine["beats"] == {"count": 4, "of": 4} and mine["scored"] == 4
    assert numbers["layers"] == [
        {
            **{"layer": 0, "latents": 12, "dead": 0, "dense": 12, "single_token": 0},
            **{"active_per_token": pytest.approx(1.2), "tokens": 100},
        }
    ]


def test_a_broken_record_is_named(tmp_path, world):
    path = tmp_path / "programs.jsonl"
    record = next(r for r in world[2] if r["control"] == "none")
    good = {**record, "program": record["program"].to_json()}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good) + "\n")
    with pytest.raises(UserError, match=r"line 2 explains L0\.resid_mid\.F0 again"):
        read_latent_explanations([path])
    path.write_text(json.dumps({k: v for k, v in good.items() if k != "text"}) + "\n")
    with pytest.raises(UserError, match="line 1 lacks text"):
        read_latent_explanations([path])
    path.write_text(json.dumps({**good, "program": {"parts": [{"form": "x"}]}}) + "\n")
    with pytest.raises(UserError, match="not a valid program of a latent"):
        read_latent_explanations([path])
    assert parse_latent_program(good["program"]) == record["program"]
