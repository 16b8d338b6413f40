"""Scores of predicted patterns, of events and of replaced heads."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import average_precision_score

from mechatlas.explain.forms import Duplicate, Previous
from mechatlas.explain.programs import Part, Program
from mechatlas.explain.records import (
    MEAN_PATTERN,
    SHARED,
    MeanPattern,
    swapped_programs,
    variants_of,
)
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.models.transformer import load
from mechatlas.score.curve import summarise_curve
from mechatlas.score.heads import predict_events, score_patterns
from mechatlas.score.patterns import (
    INDEX,
    PATTERN_METRICS,
    SUMS,
    active_counts,
    pattern_sums,
)
from mechatlas.score.replacement import (
    MEAN,
    MODEL,
    Replacer,
    curve_groups,
    curve_table,
    curves,
    head_table,
    rank_heads,
)
from mechatlas.score.summary import METRICS, SummarySettings, summarise, with_control
from mechatlas.stats.ranking import BINS, average_precision

SETTINGS = SummarySettings(bootstrap=200, confidence=0.95, fdr=0.05, min_events=10, seed=0)
SIZE = 30
OWN = ("programs", "none")
VOCABULARY = Vocabulary(["<bos>", *(f" w{chr(97 + i)}x" for i in range(SIZE - 1))], 0)


def random_patterns(windows, length, seed):
    raw = np.random.default_rng(seed).random((windows, length, length)).astype(np.float32) ** 3
    raw = np.tril(raw)
    return raw / raw.sum(-1, keepdims=True)


def random_tokens(windows, length, seed):
    tokens = np.random.default_rng(seed).integers(1, SIZE, (windows, length))
    tokens[:, 0] = 0
    return tokens


def metric(name, predicted, true):
    return float(PATTERN_METRICS[name](pattern_sums(predicted, true).sum(0)))


def test_pattern_metrics_against_plain_definitions():
    predicted, true = random_patterns(3, 9, 0), random_patterns(3, 9, 1)
    p, t = predicted[:, 1:], true[:, 1:]
    assert metric("iou", predicted, true) == pytest.approx(
        np.minimum(p, t).sum() / np.maximum(p, t).sum(), rel=1e-5
    )
    assert metric("iou_without_sink", predicted, true) == pytest.approx(
        np.minimum(p, t)[:, :, 1:].sum() / np.maximum(p, t)[:, :, 1:].sum(), rel=1e-5
    )
    distances = [jensenshannon(p[w, q], t[w, q], base=2) for w in range(3) for q in range(8)]
    assert metric("js_distance", predicted, true) == pytest.approx(np.mean(distances), rel=1e-5)
    causal = np.tril(np.ones((9, 9), bool))[1:]
    pairs = (
        np.array([(p[w][causal], t[w][causal]) for w in range(3)]).transpose(1, 0, 2).reshape(2, -1)
    )
    assert metric("correlation", predicted, true) == pytest.approx(
        np.corrcoef(pairs)[0, 1], rel=1e-4
    )
    assert metric("top1_accuracy", predicted, true) == pytest.approx(
        (p.argmax(-1) == t.argmax(-1)).mean()
    )


def test_perfect_and_empty_predictions():
    true = random_patterns(2, 8, 3)
    perfect = {name: metric(name, true, true) for name in PATTERN_METRICS}
    assert perfect.pop("js_distance") == pytest.approx(0, abs=1e-6)
    assert all(value == pytest.approx(1) for value in perfect.values())
    sink = np.zeros_like(true)
    sink[:, :, 0] = 1
    assert metric("iou_without_sink", sink, true) == 0
    assert metric("top1_accuracy_without_sink", sink, true) == 0
    assert np.isnan(metric("correlation_without_sink", sink, true))


def test_average_precision_counts_every_pair_at_its_base_rate():
    predicted, true = random_patterns(4, 12, 4), random_patterns(4, 12, 5)
    counts = active_counts(predicted, true, 0.3)
    causal = np.tril(np.ones((12, 12), bool))
    causal[:, 0] = False
    labels = (true[:, causal] >= 0.3).ravel()
    assert counts[:, 0].sum() == labels.sum()
    assert counts.sum() == labels.size
    bins = np.minimum((predicted[:, causal].ravel() ** 0.25 * BINS).astype(int), BINS - 1)
    assert float(average_precision(*counts.sum(0).astype(float))) == pytest.approx(
        average_precision_score(labels, bins)
    )


def test_swapped_programs_are_a_derangement_within_the_layer():
    programs = {
        (layer, head): Program(
            parts=(Part(share=0.1 * (head + 1), form=Previous(offset=layer + 1)),)
        )
        for layer in range(2)
        for head in range(5)
    }
    swapped = swapped_programs(programs, seed=3)
    for layer in range(2):
        own = [programs[(layer, h)] for h in range(5)]
        got = [swapped[(layer, h)] for h in range(5)]
        assert all(a != b for a, b in zip(own, got, strict=True))
        assert {p.model_dump_json() for p in own} == {p.model_dump_json() for p in got}
    assert swapped_programs({(0, 0): programs[(0, 0)]}, 0) == {}


def test_documents_are_summed_apart_and_controls_kept_apart():
    tokens = random_tokens(6, 10, 0)
    windows = pd.DataFrame({"doc": ["b", "a", "b", "c", "a", "b"], "tokens": list(tokens)})
    programs = {(0, 0): Program(parts=(Part(share=0.8, form=Duplicate()),))}
    patterns = random_patterns(6, 10, 6)[:, None]
    mean = {(0, 0): MeanPattern(patterns.mean(0)[0])}
    rows = pd.DataFrame(
        score_patterns(0, windows, patterns, VOCABULARY, {OWN: programs, MEAN_PATTERN: mean}, 0.2)
    )
    assert rows.groupby("control")["doc"].apply(list).to_dict() == {
        "none": ["a", "b", "c"],
        "mean_pattern": ["a", "b", "c"],
    }
    predicted = programs[(0, 0)].predict(TokenView(tokens, VOCABULARY))
    expected = pattern_sums(predicted, patterns[:, 0])[[1, 4]].sum(0)
    got = rows[(rows["control"] == "none") & (rows["doc"] == "a")][list(SUMS)].to_numpy()[0]
    np.testing.assert_allclose(got, expected)
    assert got[INDEX["rows"]] == 2 * 9
    assert set(rows.groupby("control")["explainer"].first().items()) == {
        ("none", "programs"),
        ("mean_pattern", SHARED),
    }


def test_events_get_the_prediction_of_their_own_head_window_query_and_key():
    tokens = random_tokens(5, 12, 7)
    programs = {
        (0, 0): Program(parts=(Part(share=0.7, form=Previous(offset=1)),)),
        (1, 1): Program(parts=(Part(share=0.5, form=Duplicate()),)),
    }
    events = pd.DataFrame(
        {"layer": [0, 1, 0, 1], "head": [0, 1, 0, 1], "window": [3, 1, 0, 4],
         "query": [5, 6, 2, 11], "key": [4, 2, 2, 3]}
    )  # fmt: skip
    result = predict_events(events, lambda ids: tokens[ids], VOCABULARY, {OWN: programs})
    for row in result.itertuples():
        view = TokenView(tokens[[row.window]], VOCABULARY)
        expected = programs[(row.layer, row.head)].predict(view)[0, row.query, row.key]
        assert row.prediction == pytest.approx(expected)
    assert result["prediction"].iloc[0] == pytest.approx(0.7)
    nothing = predict_events(events, lambda ids: tokens[ids], VOCABULARY, {})
    assert nothing.empty and list(nothing.columns) == list(result.columns)


# --- summary ------------------------------------------------------------------------------------


def fake_documents(quality, seed=0, docs=30, explainer="programs"):
    """Pattern rows of one head: the prediction is the truth mixed with another random pattern."""
    rows = []
    for control, mix in quality.items():
        for d in range(docs):
            true = random_patterns(1, 12, 1000 + d)
            predicted = mix * true + (1 - mix) * random_patterns(1, 12, 5000 + d + seed)
            counts = active_counts(predicted, true, 0.2)[0]
            sums = pattern_sums(predicted, true)[0]
            rows.append(
                {
                    "layer": 0,
                    "head": 0,
                    "explainer": SHARED if control == "mean_pattern" else explainer,
                    "control": control,
                    "doc": f"d{d}",
                    "active": counts[0],
                    "other": counts[1],
                }
                | dict(zip(SUMS, sums, strict=True))
            )
    return pd.DataFrame(rows)


def fake_events(good, events=60, docs=20):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(events):
        base = {
            **{"layer": 0, "head": 0, "explainer": "programs", "control": "none"},
            **{"doc": f"d{i % docs}", "window": i, "anchor_query": 5, "anchor_key": 3},
            **{"query": 5, "key": 3},
        }
        rows.append(base | {"role": "top", "prediction": rng.uniform(0.4, 0.9)})
        low = rng.uniform(0, 0.3) if good else rng.uniform(0.4, 0.9)
        rows.append(base | {"role": "negative_same_query", "key": 2, "prediction": low})
    return pd.DataFrame(rows)


def fake_losses(model, mean, program, docs=25):
    rng = np.random.default_rng(1)
    rows = []
    for d in range(docs):
        base = 100 + rng.normal(0, 5)
        for layer, head, explainer, variant, extra in (
            (*MODEL, model), (0, 0, *MEAN_PATTERN, mean), (0, 0, *OWN, program),
        ):  # fmt: skip
            loss = base + extra + rng.normal(0, 0.1)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "explainer": explainer,
                    "variant": variant,
                    "doc": f"d{d}",
                    "loss": loss,
                    "tokens": 50,
                }
            )
    return pd.DataFrame(rows)


def pick(frame, metric_name, control="none"):
    return frame[(frame["metric"] == metric_name) & (frame["control"] == control)].iloc[0]


def test_summary_tells_a_good_explanation_from_its_control():
    documents = fake_documents({"none": 0.8, "swapped": 0.2})
    frame = summarise(documents, fake_events(True), fake_losses(0, 10, 2), SETTINGS)
    own, control = pick(frame, "iou"), pick(frame, "iou", "swapped")
    assert own["low"] < own["value"] < own["high"]
    assert control["difference"] == pytest.approx(own["value"] - control["value"])
    assert control["difference_low"] > 0 and control["q_value"] < 0.05 and control["beats_control"]
    distance = pick(frame, "js_distance", "swapped")
    assert distance["value"] > pick(frame, "js_distance")["value"] and distance["difference"] > 0
    assert pick(frame, "auc_negative_same_query")["value"] == 1
    recovered = pick(frame, "loss_recovered")
    assert recovered["value"] == pytest.approx(0.8, abs=0.02)
    assert recovered["low"] < 0.8 < recovered["high"] + 0.02


def test_equal_quality_is_not_a_win():
    frame = summarise(
        fake_documents({"none": 0.5, "swapped": 0.5}),
        fake_events(True),
        fake_losses(0, 10, 2),
        SETTINGS,
    )
    row = pick(frame, "iou", "swapped")
    assert row["difference"] == pytest.approx(0)
    assert not row["beats_control"]


def test_too_few_events_and_harmless_heads_are_unscored_with_a_reason():
    frame = summarise(
        fake_documents({"none": 0.5}), fake_events(True, events=8), fake_losses(0, 0, 0), SETTINGS
    )
    auc = pick(frame, "auc_negative_same_query")
    assert (
        auc["status"] == "unscored" and "fewer than 10" in auc["reason"] and np.isnan(auc["value"])
    )
    missing = pick(frame, "auc_negative_same_key")
    assert missing["status"] == "unscored"
    recovered = pick(frame, "loss_recovered")
    assert recovered["status"] == "unscored" and "does not raise the loss" in recovered["reason"]


def test_random_weight_control_joins_by_head():
    own = pd.DataFrame({"control": ["none", "swapped"], "value": [1, 2]})
    other = pd.DataFrame({"control": ["none", "swapped"], "value": [3, 4]})
    joined = with_control(own, [other])
    assert joined["control"].tolist() == ["none", "swapped", "random_weights"]
    assert joined["value"].tolist() == [1, 2, 3]


# --- causal checks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=SIZE, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    GPT2LMHeadModel(config).double().save_pretrained(folder)
    return load(folder, dtype="float64")


class TruePatterns:
    """A predictor that cheats: it runs the model and returns the head's own pattern."""

    def __init__(self, model, layer, head):
        self.model, self.layer, self.head = model, layer, head

    def predict(self, view):
        kept = {}
        self.model.forward(
            torch.from_numpy(view.tokens),
            {"pattern": lambda value, layer: kept.__setitem__(layer, value)},
        )
        return kept[self.layer][:, self.head].numpy()


HEADS = [(layer, head) for layer in range(2) for head in range(2)]


def make_replacer(model, means=None):
    tokens = random_tokens(5, 12, 11)
    means = means or {
        h: random_patterns(1, 12, 20 + i)[0].astype(np.float64) for i, h in enumerate(HEADS)
    }
    return Replacer(model, tokens, VOCABULARY, means, batch_windows=2), tokens


def test_replacing_a_head_by_its_own_pattern_changes_nothing(model):
    replacer, tokens = make_replacer(model)
    truth = {h: TruePatterns(model, *h) for h in HEADS}
    losses = replacer.single_heads({OWN: truth})
    plain = model.losses(torch.from_numpy(tokens)).double().sum(-1).numpy()
    np.testing.assert_allclose(losses[MODEL], plain, rtol=1e-6)
    for head in HEADS:
        np.testing.assert_allclose(losses[(*head, *OWN)], plain, rtol=1e-6)
        assert np.abs(losses[(*head, *MEAN_PATTERN)] - plain).max() > 1e-3


def test_single_replacement_equals_a_plain_run_with_a_hook(model):
    """Resuming at the head's layer gives what a full pass with the replaced pattern gives."""
    replacer, tokens = make_replacer(model)
    losses = replacer.single_heads({})
    for layer, head in HEADS:
        pattern = replacer.mean[(layer, head)]

        def put(value, at, layer=layer, head=head, pattern=pattern):
            if at == layer:
                value = value.clone()
                value[:, head] = pattern
            return value

        expected = model.losses(torch.from_numpy(tokens), {"pattern": put}).double().sum(-1).numpy()
        np.testing.assert_allclose(losses[(layer, head, *MEAN_PATTERN)], expected, rtol=1e-6)


def test_groups_replace_all_their_heads_and_no_others(model):
    replacer, tokens = make_replacer(model)
    truth = {h: TruePatterns(model, *h) for h in HEADS}
    groups = curve_groups(HEADS, [0.25, 1.0], random_orders=2, seed=0, heads=4)
    losses = replacer.groups(truth, groups)
    plain = losses[("model", 0, 0.0)]
    np.testing.assert_allclose(losses[("best", 0, 0.25)], plain, rtol=1e-6)
    one = replacer.single_heads({})[(*HEADS[0], *MEAN_PATTERN)]
    np.testing.assert_allclose(losses[(MEAN, 0, 0.25)], one, rtol=1e-6)
    assert losses[(MEAN, 0, 1.0)].sum() != pytest.approx(one.sum(), rel=1e-4)
    orders = [groups[("random", r, 0.25)][1] for r in range(2)]
    assert all(len(o) == 1 for o in orders)
    documents = np.array(["a", "a", "b", "b", "b"])
    curve = summarise_curve(curve_table(losses, groups, documents, replacer, "programs"), SETTINGS)
    best = curve[curve["order"] == "best"]
    np.testing.assert_allclose(
        best["ratio"], np.exp((losses[("best", 0, 1.0)] - plain).sum() / 55), rtol=1e-6
    )
    table = head_table(replacer.single_heads({}), documents, replacer)
    assert set(table.columns) == {
        *("layer", "head", "explainer", "variant", "doc", "loss", "tokens"),
    }
    assert table[table["doc"] == "b"]["tokens"].unique().tolist() == [33]


def record(head, explainer="programs", control="none", program=True, iou=0.5):
    made = Program(parts=(Part(share=0.1 * (head + 1), form=Previous()),)) if program else None
    return {
        **{"layer": head // 2, "head": head % 2, "explainer": explainer, "control": control},
        **{"program": made, "validation_iou": iou if program else None, "text": "a text"},
    }


def test_variants_hold_what_was_asked_for():
    records = [record(h, control=c) for h in range(2) for c in ("none", "shuffled")]
    means = {(0, h): np.eye(3, dtype=np.float32) for h in range(3)}
    swapped = ("programs", "swapped")
    assert set(variants_of(records, ["swapped"], 0, means)) == {OWN, swapped}
    every = variants_of(records, ["shuffled", "mean_pattern", "random_weights"], 0, means)
    assert set(every) == {OWN, ("programs", "shuffled"), MEAN_PATTERN}
    # A head that nobody explained has no controls either.
    assert set(every[MEAN_PATTERN]) == {(0, 0), (0, 1)}


def test_variants_of_several_explainers_are_kept_apart_and_texts_without_program_left_out():
    records = [record(h) for h in range(2)] + [
        record(h, "openai", program=h == 1) for h in range(2)
    ]
    means = {(0, h): np.eye(3, dtype=np.float32) for h in range(2)}
    variants = variants_of(records, ["swapped", "shuffled", "mean_pattern"], 0, means)
    # One program alone has nothing to be swapped with, and nobody paid for shuffled rows.
    assert set(variants) == {OWN, ("programs", "swapped"), ("openai", "none"), MEAN_PATTERN}
    assert set(variants[("openai", "none")]) == {(0, 1)}
    assert variants_of(records[2:3], ["swapped", "mean_pattern"], 0, means) == {}


# --- several explainers -------------------------------------------------------------------------


def test_explainers_have_scores_of_their_own_against_the_controls_of_the_head():
    documents = pd.concat(
        [
            fake_documents({"none": 0.8, "mean_pattern": 0.3}),
            fake_documents({"none": 0.5}, explainer="openai"),
        ]
    )
    alone = summarise(
        fake_documents({"none": 0.8, "mean_pattern": 0.3}), fake_events(True), fake_losses(0, 10, 2), SETTINGS
    )  # fmt: skip
    both = summarise(documents, fake_events(True), fake_losses(0, 10, 2), SETTINGS)
    programs = both[both["explainer"] == "programs"].reset_index(drop=True)
    pd.testing.assert_frame_equal(programs, alone)
    openai = both[both["explainer"] == "openai"]
    assert set(both["explainer"]) == {"programs", "openai"}
    assert pick(openai, "iou")["value"] < pick(programs, "iou")["value"]
    shared = pick(openai, "iou", "mean_pattern")
    assert shared["value"] == pick(programs, "iou", "mean_pattern")["value"]
    assert shared["difference"] == pytest.approx(pick(openai, "iou")["value"] - shared["value"])


def test_an_explanation_without_a_program_is_unscored_with_its_reason():
    records = [
        {
            **record(0, "openai", program=False),
            "reason": "",
            "program_error": "part 1: unknown form",
        },
        {**record(1, "openai", program=False), "reason": "the model refused to answer", "text": ""},
        {**record(2, "openai", program=False), "reason": "", "program_error": ""},
        {**record(3, "openai", program=False, control="shuffled")},
    ]
    frame = summarise(
        fake_documents({"none": 0.5}), fake_events(True), fake_losses(0, 10, 2), SETTINGS, records
    )
    missing = frame[frame["explainer"] == "openai"]
    assert set(missing["metric"]) == set(METRICS) and len(missing) == 3 * len(METRICS)
    assert set(missing["status"]) == {"unscored"} and missing["value"].isna().all()
    reasons = missing.groupby(["layer", "head"])["reason"].first().tolist()
    assert reasons == [
        *("part 1: unknown form", "the model refused to answer", "a text without a program"),
    ]
    only = summarise(
        pd.DataFrame(columns=["doc"]), pd.DataFrame(), fake_losses(0, 10, 2).query("layer < 0"), SETTINGS, records
    )  # fmt: skip
    assert set(only["status"]) == {"unscored"} and set(only["explainer"]) == {"openai"}


def test_curves_of_explainers_and_shares_beyond_their_programs(model):
    replacer, _ = make_replacer(model)
    records = [record(h, iou=0.1 * h) for h in range(4)]
    records += [record(h, "openai", program=h < 2, iou=1 - 0.1 * h) for h in range(4)]
    assert rank_heads(records, "programs") == [(1, 1), (1, 0), (0, 1), (0, 0)]
    assert rank_heads(records, "openai") == [(0, 0), (0, 1)]
    documents = np.array(["a", "a", "b", "b", "b"])
    table = curves(replacer, records, documents, [0.25, 0.5, 1.0], 1, 0, 4)
    found = summarise_curve(table, SETTINGS)
    shares = found[found["order"] == "best"].groupby("explainer")["share"].apply(list).to_dict()
    assert shares == {"programs": [0.25, 0.5, 1.0], "openai": [0.25, 0.5]}
    alone = summarise_curve(
        curves(replacer, records[:4], documents, [0.25, 0.5, 1.0], 1, 0, 4), SETTINGS
    )
    same = found[found["explainer"] == "programs"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone)
    assert curves(replacer, records[6:], documents, [1.0], 1, 0, 4).empty
    assert summarise_curve(curves(replacer, [], documents, [1.0], 1, 0, 4), SETTINGS).empty
