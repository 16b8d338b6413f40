"""Latents are judged by the code that judges heads: tokens in place of pairs."""

import json

import numpy as np
import pandas as pd
import pytest
from judge_world import ScriptedJudge, Words, judge_world, make_world, read_block, records_of

from mechatlas.explain.excerpts import LATENT, Excerpts
from mechatlas.score.judge.baselines import TokenLookup
from mechatlas.score.judge.items import ItemSettings, UnitName, unit_items
from mechatlas.score.judge.latents import LatentActivity

pytestmark = pytest.mark.slow

SCORERS = ("detection", "fuzzing", "pair_auc", "simulation", "intruder", "firing")
SIZES = ItemSettings(
    items=100, pairs=50, sequences=20, trials=20, context_tokens=6, max_per_document=5, seed=0
)
UNITS = 8


def activations_of(tokens):
    """A latent that is active where a token of one group follows one of another, and others that are not."""
    own = np.isin(tokens, range(1, 25)) & np.roll(np.isin(tokens, range(20, 70)), 1, axis=1)
    other = np.isin(tokens, range(30, 40))
    values = np.stack([own * (1 + tokens % 3), other * 2.0], axis=1).astype(np.float32)
    values[:, :, 0] = 50  # BOS does not count
    return values


@pytest.fixture(scope="module")
def world():
    return make_world(11, windows=120)


@pytest.fixture(scope="module")
def items(world):
    values, train = activations_of(world.test_tokens), activations_of(world.train)
    frames = []
    for number in range(UNITS):
        name = f"L3.resid_mid.F{number}"
        excerpts = Excerpts(Words(world.texts), SIZES.context_tokens)
        activity = LatentActivity(world.test, values, 0, excerpts, 0.2, 0, name)
        lookup = TokenLookup(world.train, train[:, 0], world.tokens)
        frames.append(
            unit_items(UnitName(name, 3, number), activity, SCORERS, SIZES, {"lookup": lookup})
        )
    return pd.concat(frames, ignore_index=True)


class LatentJudge(ScriptedJudge):
    def one(self, claim, system, name, pieces, position):
        if "active anywhere" in system:
            system += (
                " rest looks back at shown"  # the word by which the base class knows detection
            )
        return super().one(claim, system, name, pieces, position)


def test_items_are_tokens_with_the_right_labels(items, world):
    values = activations_of(world.test_tokens)[:, 0]
    first = int(world.test["window"].iloc[0])
    assert set(items["kind"]) == {LATENT.name} and (items["item"] != "").all()
    assert items.groupby(["unit", "scorer"]).ngroups == UNITS * 6
    for item in items.itertuples():
        row, pieces = values[item.window - first], json.loads(item.pieces)
        token = world.texts[world.test_tokens[item.window - first, item.query]]
        assert item.key == -1
        if item.role in ("active", "own"):
            assert row[item.query] > 0
        elif item.role not in ("place", "random_place"):
            assert row[item.query] == 0, item.role
        if item.scorer == "detection":
            assert len(pieces) == 1 and pieces[0].endswith(token)
            shown = range(max(1, item.query - SIZES.context_tokens), item.query + 1)
            assert item.label == bool(row[list(shown)].any())
        else:
            assert pieces[-1] == token


def test_negatives_are_matched(items, world):
    pairs = items[items["scorer"] == "pair_auc"]
    assert set(pairs["role"]) == {"active", "negative_same_token", "negative_same_window"}
    tokens = world.test_tokens[pairs["window"] - world.test["window"].iloc[0], pairs["query"]]
    joined = pairs.assign(token=tokens).merge(
        pairs.assign(token=tokens)[pairs["label"]], on=["unit", "group"], suffixes=("", "_active")
    )
    same = joined[joined["role"] == "negative_same_token"]
    assert (same["token"] == same["token_active"]).all() and len(same) > 20
    same = joined[joined["role"] == "negative_same_window"]
    assert (same["window"] == same["window_active"]).all() and len(same) > 100
    words = items["pieces"].map(lambda text: sum(p.count(" ") for p in json.loads(text)))
    counts = items.assign(words=words)[items["scorer"].isin(["detection", "fuzzing"])]
    assert (counts.groupby(["unit", "scorer", "group"])["words"].nunique() == 1).all()


@pytest.mark.parametrize("error", (0.0, 0.2))
def test_scores_recover_the_judges_quality(items, tmp_path, error):
    run = judge_world(tmp_path, items, LatentJudge(items, error))
    assert (run.judgements["status"] == "judged").all()
    for metric in (
        "auc",
        "auc_negative_same_token",
        "auc_negative_same_window",
        "accuracy",
        "correlation",
    ):
        rows = run.scores[(run.scores["metric"] == metric) & (run.scores["status"] == "scored")]
        assert len(rows) >= UNITS
        if metric == "correlation":  # strengths have three sizes, the judge only says yes or no
            assert rows["value"].mean() == pytest.approx(0.9 * (1 - error), abs=0.12)
            continue
        held = (rows["low"] <= 1 - error) & (1 - error <= rows["high"])
        assert held.mean() >= 0.75, rows[["metric", "value", "low", "high"]]
        assert abs(rows["value"].mean() - (1 - error)) < 0.06


def test_a_look_up_cannot_tell_copies_of_one_token_apart(items, tmp_path):
    run = judge_world(tmp_path, items, LatentJudge(items))
    same_token = run.metric("auc_negative_same_token")
    assert (same_token["lookup"].between(0.4, 0.6)).all()
    assert (same_token["gain_over_lookup_low"] > 0.3).all()
    assert (run.metric("auc_negative_same_window")["lookup"] > 0.65).all()
    assert run.scores["program"].isna().all()


def test_prompts_speak_of_latents(items, tmp_path):
    run = judge_world(tmp_path, items, LatentJudge(items), records=records_of(items)[:1])
    systems = {call.body["messages"][0]["content"] for call in run.calls}
    assert (
        len(systems) == 4
    )  # detection, marked places (two scorers and firing), trials, simulation
    assert all("a latent" in text and "head" not in text for text in systems)
    assert all("QUERY" not in text and "KEY" not in text for text in systems)
    assert read_block(run.calls[0])[0] == {"claim": "Attends as L3.resid_mid.F0 does."}


def test_firing_items_stand_for_all_test_tokens(items, world):
    values = activations_of(world.test_tokens)[:, 0, 1:]
    active = int((values >= 0.2 * values.max()).sum())
    firing = items[items["scorer"] == "firing"]
    for _, group in firing.groupby("unit"):
        assert group.loc[group["label"], "weight"].sum() == pytest.approx(active)
        assert group.loc[~group["label"], "weight"].sum() == pytest.approx((values == 0).sum())
    assert items.loc[items["scorer"] != "firing", "weight"].isna().all()


def test_precision_at_the_true_rate_is_that_of_the_whole_text(items, world, tmp_path):
    """A judge that errs on a tenth of either side: recall 0.9, precision by Bayes' rule."""
    values = activations_of(world.test_tokens)[:, 0, 1:]
    active = int((values >= 0.2 * values.max()).sum())
    inactive = int((values == 0).sum())
    run = judge_world(tmp_path, items[items["scorer"] == "firing"], LatentJudge(items, 0.1))
    wanted = 0.9 * active / (0.9 * active + 0.1 * inactive)
    assert run.metric("recall")["value"].mean() == pytest.approx(0.9, abs=0.04)
    precision = run.metric("precision")
    assert precision["value"].mean() == pytest.approx(wanted, abs=0.1)
    held = (precision["low"] <= wanted) & (wanted <= precision["high"])
    assert held.mean() >= 0.75
    assert precision["lookup"].notna().all()


def test_random_only_simulation_uses_the_random_stretches(items, tmp_path):
    simulated = items[items["scorer"] == "simulation"]
    assert set(simulated["role"]) == {"place", "random_place"}
    groups = simulated.groupby(["unit", "group"])["role"].nunique()
    assert (groups == 1).all()
    run = judge_world(tmp_path, simulated, LatentJudge(items))
    rows = run.scores[run.scores["metric"] == "correlation_random_only"]
    scored = rows[rows["status"] == "scored"]
    whole = run.metric("correlation")
    assert len(scored) >= UNITS and (scored["groups"] < whole["groups"].min()).all()
