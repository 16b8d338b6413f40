"""A judge of known quality: its scores must come out as what it is."""

import json

import numpy as np
import pandas as pd
import pytest
from judge_world import ALL, SIZES, ScriptedJudge, head_items, judge_world, make_world, program_of
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from mechatlas.explain.forms import Duplicate, Induction, Previous, Start
from mechatlas.explain.vocabulary import TokenView
from mechatlas.score.judge.metrics import JUDGE, Prepared, judge_interval, separation
from mechatlas.stats.bootstrap import document_weights

pytestmark = pytest.mark.slow

UNITS = 8


@pytest.fixture(scope="module")
def many():
    """Items of a dozen made-up heads with the same rule, each on places of its own."""
    world = make_world(1, windows=150)
    programs = [program_of(), program_of(Previous())]
    parts = [head_items(world, programs, first=i, heads=1) for i in range(UNITS)]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module", params=(0.0, 0.1, 0.3, 0.5))
def judged(request, many, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    return request.param, judge_world(folder, many, ScriptedJudge(many, request.param))


QUALITY = {
    "auc": lambda e: 1 - e,
    "auc_negative_same_query": lambda e: 1 - e,
    "auc_negative_same_key": lambda e: 1 - e,
    "auc_negative_same_distance": lambda e: 1 - e,
    "balanced_accuracy": lambda e: 1 - e,
    "correlation": lambda e: 1 - e,
    "accuracy": lambda e: 1 - e,
}


@pytest.mark.parametrize("scorer", ALL)
def test_intervals_hold_the_judges_true_quality(judged, scorer):
    error, run = judged
    rows = run.scores[(run.scores["scorer"] == scorer) & run.scores["metric"].isin(QUALITY)]
    assert len(rows) >= UNITS
    for metric, group in rows.groupby("metric"):
        assert (group["status"] == "scored").all(), group["reason"].unique()
        true = QUALITY[metric](error)
        inside = (group["low"] - 1e-9 <= true) & (true <= group["high"] + 1e-9)
        # 95 % intervals miss now and then; the mean over units must not be off.
        assert inside.mean() >= 0.75, (metric, group[["value", "low", "high"]])
        spread = group["value"].std(ddof=1) / np.sqrt(len(group)) if error else 0.0
        assert abs(group["value"].mean() - true) <= 3 * spread + 1e-9, metric
        if error > 0:
            assert (group["high"] - group["low"]).mean() > 0.05 and (
                group["high"] - group["low"]
            ).max() < 0.8


def test_nothing_is_unscored_and_usage_is_counted(judged):
    _, run = judged
    assert (run.judgements["status"] == "judged").all()
    assert (run.scores["failure_rate"] == 0).all() and (run.usage["canary_failures"] == 0).all()
    assert run.usage["requests"].sum() == len(run.calls)
    assert run.usage["prompt_tokens"].sum() > 0
    rows = run.scores[run.scores["scorer"] == "fuzzing"]
    assert rows["requests"].eq(4).all() and rows["price"].isna().all()


def test_metrics_and_gains_equal_an_independent_computation(judged, many):
    _, run = judged
    merged = many.merge(run.judgements, on=["unit", "scorer", "item"])
    for unit in ("L0.H0", "L0.H6"):
        rows = merged[(merged["unit"] == unit) & (merged["scorer"] == "detection")]
        got = run.scores[(run.scores["unit"] == unit) & (run.scores["scorer"] == "detection")]
        got = got.set_index("metric")
        auc = {
            n: roc_auc_score(rows["label"], rows[n])
            for n in ("value", "program_prediction", "lookup_prediction")
        }
        assert got.loc["auc", "value"] == pytest.approx(auc["value"])
        assert got.loc["auc", "program"] == pytest.approx(auc["program_prediction"])
        assert got.loc["auc", "lookup"] == pytest.approx(auc["lookup_prediction"])
        assert got.loc["auc", "gain_over_program"] == pytest.approx(
            auc["value"] - auc["program_prediction"]
        )
        assert got.loc["auc", "gain_over_lookup"] == pytest.approx(
            auc["value"] - auc["lookup_prediction"]
        )
        assert got.loc["balanced_accuracy", "value"] == pytest.approx(
            balanced_accuracy_score(rows["label"], rows["value"] >= 5)
        )
        assert got.loc["f1", "value"] == pytest.approx(f1_score(rows["label"], rows["value"] >= 5))
        rows = merged[(merged["unit"] == unit) & (merged["scorer"] == "simulation")]
        correlation = np.corrcoef(rows["value"], rows["strength"])[0, 1]
        got = run.metric("correlation").loc[unit]
        assert got["value"] == pytest.approx(correlation)
        assert got["program"] == pytest.approx(1)
        rows = merged[
            (merged["unit"] == unit) & (merged["role"].isin(["active", "negative_same_key"]))
        ]
        rows = rows[rows["scorer"] == "pair_auc"]
        both = rows.groupby("group")["role"].transform("nunique") == 2
        expected = roc_auc_score(rows[both]["label"], rows[both]["value"])
        assert run.metric("auc_negative_same_key").loc[unit, "value"] == pytest.approx(expected)


def test_top1_and_accuracy_against_plain_loops(judged, many):
    _, run = judged
    merged = many.merge(run.judgements, on=["unit", "scorer", "item"])
    rows = merged[(merged["unit"] == "L0.H0")]
    shares = []
    for _, group in rows[(rows["scorer"] == "simulation") & rows["label"]].groupby("group"):
        best = group["value"] == group["value"].max()
        shares.append(best[group["strength"].idxmax()] / best.sum())
    assert run.metric("top1").loc["L0.H0", "value"] == pytest.approx(np.mean(shares))
    trials = rows[rows["scorer"] == "intruder"]
    chosen = trials[trials["value"] == 1]
    assert run.metric("accuracy").loc["L0.H0", "value"] == pytest.approx(chosen["label"].mean())
    weakest = trials.loc[trials.groupby("group")["program_prediction"].idxmin(), "label"]
    assert run.metric("accuracy").loc["L0.H0", "program"] == pytest.approx(weakest.mean())


def test_separation_is_the_area_under_the_curve():
    rng = np.random.default_rng(0)
    labels, values = rng.random(200) < 0.4, rng.integers(0, 11, 200)
    assert separation(labels, values) == pytest.approx(roc_auc_score(labels, values))
    assert np.isnan(separation(np.ones(3, bool), np.arange(3)))


def test_few_groups_answered_alike_still_leave_doubt(judged):
    """Twenty right answers of twenty do not prove a judge that is always right; the AUCs rest on more."""
    error, run = judged
    if error:
        return
    for metric in ("accuracy", "correlation"):
        rows = run.metric(metric)
        assert (rows["value"] > 0.999).all() and (rows["high"] > 0.999).all()
        assert rows["low"].between(0.6, 0.97).all(), rows["low"]
    assert (run.metric("auc")["low"] == 1).all()


@pytest.mark.parametrize(("trials", "right"), [(20, 0.9), (20, 0.5), (12, 0.8)])
def test_intervals_of_few_trials_hold_the_truth(trials, right):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        sums = np.stack([rng.random(trials) < right, np.ones(trials)], axis=1).astype(float)
        ready = Prepared(
            {JUDGE: sums}, lambda t: t[:, 0] / t[:, 1], trials, trials, np.array([[1.0, 1], [0, 1]])
        )
        values = ready.replicates(document_weights(trials, 200, rng))[JUDGE]
        doubted = ready.doubted(document_weights(trials + 2, 200, rng))
        low, high = judge_interval(values, doubted, 0.95)
        held += low <= right <= high
    assert held / 200 >= 0.93


class RuleJudge(ScriptedJudge):
    """Answers from the program that the claim names, whatever unit is asked about."""

    def __init__(self, items, world, programs):
        super().__init__(items, respond=self.by_rule)
        view = TokenView(world.test_tokens, world.vocabulary)
        self.patterns = {f"L0.H{i}": program.predict(view) for i, program in enumerate(programs)}
        self.first = int(world.test["window"].iloc[0])
        self.named = ""

    def one(self, claim, system, name, pieces, position):
        self.named = claim.split()[2]
        return super().one(claim, system, name, pieces, position)

    def by_rule(self, row, name):
        pattern = self.patterns[self.named]
        if isinstance(row, pd.DataFrame):
            at = [row[name].to_numpy() for name in ("window", "query", "key")]
            return 1 + int(pattern[at[0] - self.first, at[1], at[2]].argmin())
        active = pattern[row.window - self.first, row.query]
        return 10 * int((active[1:].max() if row.scorer == "detection" else active[row.key]) > 0.1)


def test_true_texts_reach_the_ceiling_and_swapped_ones_the_floor(tmp_path):
    world = make_world(3)
    programs = [program_of(), program_of(Induction(pick="last"))]
    items = head_items(world, programs, ("detection", "fuzzing", "pair_auc", "intruder"))
    run = judge_world(tmp_path, items, RuleJudge(items, world, programs), controls=("swapped",))
    # Both rules are active where the token has occurred before: detection asks whether, not where.
    detection = run.scores.query("scorer == 'detection' and metric == 'auc'")
    assert (detection["value"] > 0.95).all()
    run.scores = run.scores[run.scores["scorer"] != "detection"]
    for metric in ("auc", "auc_negative_same_query", "auc_negative_same_distance"):
        own, other = run.metric(metric), run.metric(metric, "swapped")
        assert (own["value"] == 1).all()
        assert other["value"].between(0.35, 0.65).all(), other["value"]
        assert (other["difference"] > 0.3).all() and other["beats_control"].all()
        assert (other["q_value"] <= 0.05).all() and own["q_value"].isna().all()
    accuracy = run.metric("accuracy", "swapped")["value"]
    assert (accuracy < 0.6).all() and (run.metric("accuracy")["value"] == 1).all()


def test_rules_of_position_cannot_be_told_from_position(tmp_path):
    """A previous-token head has no wrong pair at its distance, and is never quiet: unscored, with the reason."""
    world = make_world(4)
    items = head_items(
        world,
        [program_of(Previous()), program_of(Start(of="line"))],
        ("detection", "fuzzing", "pair_auc"),
    )
    missing = items[(items["item"] == "") & (items["unit"] == "L0.H0")].set_index("scorer")[
        "reason"
    ]
    assert "active at 4600 of 4700 test queries" in missing["detection"]
    assert missing["fuzzing"].startswith("only 0 of 50 same distance pairs")
    run = judge_world(tmp_path, items, ScriptedJudge(items))
    row = run.scores.query("unit == 'L0.H0' and scorer == 'fuzzing'").iloc[0]
    assert row["status"] == "unscored" and row["reason"] == missing["fuzzing"]
    assert np.isnan(row["value"]) and np.isnan(row["failure_rate"])
    kinds = set(run.scores.query("unit == 'L0.H0' and scorer == 'pair_auc'")["metric"])
    assert kinds == {"auc_negative_same_query", "auc_negative_same_key"}


def test_a_judge_that_only_knows_distance_scores_half_on_fuzzing(many, tmp_path):
    items = many[many["scorer"].isin(["fuzzing", "pair_auc"])]
    judge = ScriptedJudge(items, respond=lambda row, name: (row.query - row.key) * 7 % 11)
    run = judge_world(tmp_path, items, judge)
    for metric in ("auc", "auc_negative_same_distance"):
        assert run.metric(metric)["value"].tolist() == pytest.approx([0.5] * UNITS)


LEAKS = {
    "id": lambda row, name, place, line: sum(map(ord, name)) % 11,
    "position": lambda row, name, place, line: place % 11,
    "early or late": lambda row, name, place, line: 10 * int(place > 13),
    "length": lambda row, name, place, line: min(10, len(json.dumps(line)) // 12),
    "number of words": lambda row, name, place, line: min(10, json.dumps(line).count(" ")),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_ids_positions_and_lengths_tell_nothing(leak, many, tmp_path):
    items = many[many["scorer"].isin(["detection", "fuzzing", "intruder"])]

    class Judge(ScriptedJudge):
        def one(self, claim, system, name, pieces, position):
            value = LEAKS[leak](None, name, position, pieces)
            return 1 + value % 5 if len(pieces) == 5 and isinstance(pieces[0], list) else value

    run = judge_world(tmp_path, items, Judge(items))
    for scorer, metric, chance in (
        ("detection", "auc", 0.5), ("fuzzing", "auc", 0.5), ("intruder", "accuracy", 0.2)
    ):  # fmt: skip
        rows = run.scores[(run.scores["scorer"] == scorer) & (run.scores["metric"] == metric)]
        inside = (rows["low"] <= chance) & (chance <= rows["high"])
        assert inside.mean() >= 0.75, (scorer, rows[["value", "low", "high"]])
        assert abs(rows["value"].mean() - chance) < 0.06, (scorer, rows["value"].mean())


def test_items_do_not_depend_on_the_other_scorers():
    world = make_world(5, windows=60)
    programs = [program_of(), program_of(Duplicate(pick="first"))]
    every = head_items(world, programs)
    for scorer in ALL:
        alone = head_items(world, programs, (scorer,))
        both = every[every["scorer"] == scorer].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, both)
    assert SIZES.items == 100
