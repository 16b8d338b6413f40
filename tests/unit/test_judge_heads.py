"""Real heads of an embedded model: the scripts of the rules, real prompts, and what they cost."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judge_world import ScriptedJudge, judge_world, program_of, records_of, settings_for
from llm_server import LlmServer, endpoint_config, llm_config

from mechatlas.explain.cases import Cases
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.forms import Duplicate, Previous
from mechatlas.explain.language import ask_settings, first_requests
from mechatlas.explain.llm.requests import estimate_tokens
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import read_provenance, read_table, write_jsonl
from mechatlas.score.judge.judging import requests_of, subjects_of, tasks_of
from mechatlas.score.judge.planted import FORMS, planted_programs, planted_records

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = str(REPOSITORY / "resources" / "models" / "demo-2l")
SCORERS = ["detection", "fuzzing", "pair_auc", "simulation", "intruder"]
SIZES = {
    **{"items": 100, "pairs": 50, "sequences": 20, "trials": 20},
    **{"context_tokens": 12, "max_per_document": 5},
}
#: Prompt tokens that delphi's defaults take to explain, detect and fuzz a latent, at four characters each.
DELPHI = 37_300
#: A unit's explanation takes at most so many characters.
LONGEST = "Attends to " + "x" * 389
#: Spacing of half-precision numbers near 0.1.
HALF = 2**-14


def script(name):
    sys.path.insert(0, str(REPOSITORY / "workflow" / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A capture of the smaller embedded model at the size of the default configuration, and its items."""
    folder = tmp_path_factory.mktemp("heads")
    at = {
        name: str(folder / f"{name}.parquet")
        for name in ("documents", "windows", "events", "stats")
    }
    at |= {"chunk": str(folder / "0000"), "items": str(folder / "items.parquet")}
    settings = {"kind": "synthetic", "style": "wiki", "documents": 400}
    script("prepare_documents").main(at["documents"], "s", settings, 0)
    script("sample_windows").main(
        at["documents"], at["windows"], MODEL, "s", windows_count=400, window_len=96,
        split={"train": 0.5, "validation": 0.2, "test": 0.3}, pattern_windows=48, seed=0,
    )  # fmt: skip
    script("capture_heads").main(
        at["windows"], at["chunk"], MODEL, "demo-2l", "trained", 0, 400, 8,
        candidates=400, max_per_document=5, quantiles=10, events_per_quantile=20, random_events=50,
        pattern_dtype="float16", activations=(), seed=0, device="cpu", dtype="float32",
    )  # fmt: skip
    script("merge_events").main(
        at["windows"], [at["chunk"]], at["events"], topk=200, max_per_document=5,
        quantiles=10, events_per_quantile=20, seed=0, stats=at["stats"],
    )  # fmt: skip
    programs = {h: program_of(Previous() if h % 2 else Duplicate()) for h in range(8)}
    records = [
        {
            **{"unit": f"L{layer}.H{head}", "layer": layer, "head": head, "explainer": "programs"},
            **{"control": "none", "text": f"Attends as L{layer}.H{head} does.", "kind": "rules"},
            **{"program": programs[head].to_json(), "validation_iou": 0.5, "candidates": []},
        }
        for layer in (0, 1)
        for head in range(8)
    ]
    at["explanations"] = str(folder / "programs.jsonl")
    write_jsonl(at["explanations"], records, {})
    select(at, at["items"])
    return at


def select(at, items, **changes):
    arguments = {
        "max_heads": 200,
        "scorers": SCORERS,
        "sizes": SIZES,
        "planted": 4,
        "active_attention": 0.1,
        "seed": 0,
    }
    script("select_items").main(
        [at["explanations"]], at["stats"], at["windows"], [at["chunk"]], at["events"], MODEL, None,
        **{**arguments, **changes}, test_items=items,
    )  # fmt: skip


@pytest.fixture(scope="module")
def items(place):
    return read_table(place["items"])


def test_most_heads_have_all_items_and_the_others_reasons(items):
    real = items[items["layer"] >= 0]
    counts = real[real["item"] != ""].groupby("scorer")["unit"].nunique()
    assert counts.min() >= 12 and real["unit"].nunique() == 16
    missing = real[real["item"] == ""]
    assert missing["reason"].str.startswith("only ").all()
    sizes = real[real["item"] != ""].groupby(["scorer", "unit"]).size().groupby("scorer")
    assert sizes.max()["detection"] == sizes.max()["fuzzing"] == sizes.max()["intruder"] == 100
    assert 150 <= sizes.max()["pair_auc"] <= 200 and sizes.max()["simulation"] <= 480


def test_items_are_of_test_documents_and_spread_over_them(items, place):
    windows = read_table(place["windows"])
    splits = dict(zip(windows["window"], windows["split"], strict=True))
    docs = dict(zip(windows["window"], windows["doc"], strict=True))
    used = items[items["item"] != ""]
    assert {splits[w] for w in used["window"]} == {"test"}
    assert [docs[w] for w in used["window"]] == used["doc"].tolist()
    active = used[(used["role"] == "active") & (used["scorer"] == "fuzzing")]
    assert active.groupby(["unit", "doc"]).size().max() <= 5
    assert active.groupby("unit")["doc"].nunique().min() >= 20


def test_labels_are_what_the_patterns_say(items, place):
    data = HeadData(place["windows"], [place["chunk"]], MODEL, None)
    table = data.pattern_windows("test")
    row = {int(w): i for i, w in enumerate(table["window"])}
    checked = 0
    for layer in (0, 1):
        patterns = data.sample("test", layer).patterns
        here = items[(items["layer"] == layer) & (items["item"] != "") & items["window"].isin(row)]
        for item in here.itertuples():
            line = patterns[row[item.window], item.head, item.query]
            checked += 1
            if item.scorer == "detection":
                # Stored patterns are rounded to half precision, labels come from the unrounded ones.
                strongest = line[1:].max()
                assert abs(strongest - 0.1) < HALF or (strongest >= 0.1) == item.label
            elif item.role in ("active", "own"):
                assert (
                    line[item.key] == pytest.approx(item.strength, abs=1e-3)
                    and line[item.key] > 0.0999
                )
            elif item.role != "place":
                assert line[item.key] < 0.1, item
            else:
                assert line[item.key] == pytest.approx(item.strength, abs=1e-6)
            if item.role == "intruder":
                others = patterns[row[item.window], :, item.query, item.key]
                assert others.max() >= 0.0999 and line[item.key] < 0.0101
    assert checked > 2000


def test_groups_are_matched_in_distance_and_length(items):
    used = items[items["item"] != ""].assign(distance=lambda t: t["query"] - t["key"])
    for scorer in ("detection", "fuzzing"):
        groups = used[used["scorer"] == scorer].groupby(["unit", "group"])
        assert (groups["distance"].nunique() == 1).all() and (groups.size() == 2).all()
        assert (groups["label"].sum() == 1).all()
    pairs = used[used["scorer"] == "pair_auc"]
    joined = pairs.merge(pairs[pairs["label"]], on=["unit", "group"], suffixes=("", "_active"))
    for kind, column in (("query", "query"), ("key", "key"), ("distance", "distance")):
        rows = joined[joined["role"] == f"negative_same_{kind}"]
        assert (rows[column] == rows[f"{column}_active"]).all() and len(rows)
        assert (rows["window"] == rows["window_active"]).mean() > 0.7
    assert not used.duplicated(["unit", "item"]).any()
    marked = used[used["scorer"].isin(["fuzzing", "pair_auc"]) & (used["role"] != "active")]
    assert not marked.duplicated(["unit", "scorer", "window", "query", "key"]).any()


def test_excerpts_show_key_and_query_and_hide_the_key_in_detection(items, place):
    data = HeadData(place["windows"], [place["chunk"]], MODEL, None)
    texts = data.vocabulary.texts
    for item in items[(items["item"] != "") & (items["unit"] == "L1.H0")].itertuples():
        tokens, pieces = data.tokens(np.array([item.window]))[0], json.loads(item.pieces)
        if item.scorer in ("fuzzing", "pair_auc", "intruder"):
            assert pieces[1] == texts[tokens[item.key]] and pieces[3] == texts[tokens[item.query]]
            assert len(pieces) == 4
        elif item.scorer == "detection":
            assert len(pieces) == 2 and pieces[1] == texts[tokens[item.query]]
            shown = pieces[0] if isinstance(pieces[0], str) else pieces[0][0] + pieces[0][2]
            assert isinstance(shown, str)
        else:
            assert pieces == [texts[tokens[item.key]]]


def test_predictions_are_those_of_program_and_train_means(items, place):
    data = HeadData(place["windows"], [place["chunk"]], MODEL, None)
    train = data.sample("train", 1)
    rows = items[(items["unit"] == "L1.H2") & (items["scorer"] == "pair_auc")]
    tokens = data.tokens(rows["window"].to_numpy())
    pattern = program_of(Duplicate()).predict(TokenView(tokens, data.vocabulary))
    at = (np.arange(len(rows)), rows["query"].to_numpy(), rows["key"].to_numpy())
    np.testing.assert_allclose(rows["program_prediction"], pattern[at], atol=1e-6)
    # The look-up, by plain loops over the train windows.
    own, seen = train.patterns[:, 2], train.view.tokens
    for item, line in list(zip(rows.itertuples(), tokens, strict=True))[:12]:
        pair, key = (int(line[item.query]), int(line[item.key])), int(line[item.key])
        causal = [
            (w, q, k)
            for w, q, k in np.argwhere(seen[:, None, :] == key * np.ones((1, 96, 1)))
            if 1 <= k <= q
        ]
        by_key = [own[w, q, k] for w, q, k in causal]
        by_pair = [own[w, q, k] for w, q, k in causal if seen[w, q] == pair[0]]
        mask = np.tril(np.ones((96, 96), bool))
        mask[:, 0] = False
        mean = own[:, mask].astype(np.float64).mean()
        back = (np.sum(by_key, dtype=np.float64) + 5 * mean) / (len(by_key) + 5)
        expected = (np.sum(by_pair, dtype=np.float64) + 5 * back) / (len(by_pair) + 5)
        assert item.lookup_prediction == pytest.approx(expected, rel=1e-5)


def test_selecting_again_gives_the_same_and_fewer_scorers_the_same_items(items, place, tmp_path):
    select(place, str(tmp_path / "one.parquet"), scorers=["fuzzing"], planted=0)
    one = read_table(tmp_path / "one.parquet")
    both = items[(items["scorer"] == "fuzzing") & (items["layer"] >= 0)].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, both)
    assert read_provenance(tmp_path / "one.parquet")["scorers"] == ["fuzzing"]


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def costs(items, place):
    """Prompt tokens per head: explanation, and detection with fuzzing of the longest text there may be."""
    settings = settings_for("http://127.0.0.1:1/v1")
    records = [record | {"text": LONGEST} for record in records_of(items)]
    used = items[items["scorer"].isin(["detection", "fuzzing"])]
    frame = pd.DataFrame(
        [
            (task.subject.unit, task.scorer, *totals(requests_of(task, settings)))
            for task in tasks_of(used, subjects_of(records, [], 0))
        ],
        columns=["unit", "scorer", "tokens", "characters"],
    )
    whole = frame.groupby("unit")["tokens"].transform("size") == 2
    judged = frame[whole].groupby("unit")[["tokens", "characters"]].sum()
    data = HeadData(place["windows"], [place["chunk"]], MODEL, None)
    openai = endpoint_config("http://127.0.0.1:1/v1")
    cases = Cases(data, place["events"], place["stats"], openai, 200, 0)
    asked = [totals([r]) for r in first_requests(cases, ask_settings(openai, settings.endpoint))]
    return judged, pd.DataFrame(asked, columns=["tokens", "characters"])


def totals(requests):
    requests = list(requests)
    texts = [message["content"] for request in requests for message in request.messages]
    return sum(map(estimate_tokens, requests)), sum(map(len, texts))


def test_a_third_of_delphis_tokens_at_most(costs):
    judged, asked = costs
    assert len(judged) >= 12 and len(asked) == 16
    # By an estimate that counts signs, quotes and the answer's schema, even for the longest explanations.
    assert judged["tokens"].max() + asked["tokens"].max() <= DELPHI / 3
    # By four characters a token, as delphi's own were counted.
    characters = judged["characters"].max() + asked["characters"].max()
    assert characters / 4 <= DELPHI / 3.5


def test_most_of_a_prompt_is_items(items):
    settings = settings_for("http://127.0.0.1:1/v1")
    rows = items[(items["unit"] == "L1.H1") & (items["scorer"] == "fuzzing")]
    subject = subjects_of(
        [{"unit": "L1.H1", "explainer": "p", "control": "none", "text": "Rests.", "layer": 1}],
        [],
        0,
    )
    requests = list(requests_of(tasks_of(rows, subject)[0], settings))
    assert len(requests) == 4 and len({r.messages[0]["content"] for r in requests}) == 1
    share = len(requests[0].messages[0]["content"]) / sum(
        len(m["content"]) for m in requests[0].messages
    )
    assert share < 0.3


# --- the scripts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(items, place, tmp_path_factory):
    """The three scripts, with a judge that errs in one answer of ten."""
    folder = tmp_path_factory.mktemp("judged")
    texts = {r["unit"]: r["text"] for r in planted_records(4)}

    class Judge(ScriptedJudge):
        def __call__(self, call):
            # Planted units are explained in words; the others' texts hold their names.
            lines = call.body["messages"][-1]["content"].split("\n")
            claim = json.loads(lines[1])["claim"]
            unit = next((u for u, text in texts.items() if text == claim), None)
            if unit is not None:
                lines[1] = json.dumps({"claim": f"Attends as {unit} does."})
                call.body["messages"][-1]["content"] = "\n".join(lines)
            return super().__call__(call)

    judge = {
        "planted": 4,
        "controls": [],
        "items_per_request": 25,
        "simulation": "all_at_once",
        "max_tokens": 1000,
    }
    with LlmServer(Judge(items, 0.1)) as server:
        section = endpoint_config(server) | judge | {"provider": "scripted"}
        at = {name: section.pop(name) for name in ("base_url", "api_key_env")}
        script("judge_heads").main(
            place["items"], [place["explanations"]], section, judge_at=at,
            llm=llm_config(folder / "answers.sqlite", retries=0), seed=0,
            judgements=folder / "judgements.parquet", usage=folder / "usage.parquet",
        )  # fmt: skip
    script("summarise_judgements").main(
        test_items=place["items"], judgements=folder / "judgements.parquet",
        usage=folder / "usage.parquet", scores=folder / "scores.parquet", bootstrap=200,
        confidence=0.95, fdr=0.05, active_attention=0.1, seed=0,
    )  # fmt: skip
    return read_table(folder / "judgements.parquet"), read_table(folder / "scores.parquet")


def test_scripts_end_with_a_score_for_every_head_and_planted_unit(judged, items):
    judgements, scores = judged
    assert len(judgements) == (items["item"] != "").sum()
    assert (judgements["status"] == "judged").all()
    assert set(scores["unit"]) == set(items["unit"])
    scored = scores[(scores["status"] == "scored") & scores["metric"].isin(["auc"])]
    assert scored["value"].between(0.75, 1).all() and abs(scored["value"].mean() - 0.9) < 0.02
    held = (scored["low"] <= 0.9) & (scored["high"] >= 0.9)
    assert held.mean() > 0.8
    planted = scored[scored["explainer"] == "planted"]
    assert set(planted["unit"]) == {"planted.1", "planted.2", "planted.3"}
    assert (planted["program"] == 1).all() and (planted["layer"] == -1).all()
    unscored = scores[scores["status"] == "unscored"]
    assert unscored["value"].isna().all() and (unscored["reason"] != "").all()
    assert (scores["requests"].dropna() > 0).all()


def test_a_perfect_judge_shows_the_ceiling_and_the_floor(items, place, tmp_path):
    """It answers from the program whose English the claim is, whichever planted unit is asked about."""
    data = HeadData(place["windows"], [place["chunk"]], MODEL, None)
    windows = data.pattern_windows("test")
    row_of = {int(w): i for i, w in enumerate(windows["window"])}
    view = TokenView(np.stack(windows["tokens"].to_list()), data.vocabulary)
    patterns = {r["text"]: r["program"].predict(view) for r in planted_records(4)}

    class Judge(ScriptedJudge):
        def one(self, claim, system, name, pieces, position):
            self.pattern = patterns[claim]
            return super().one(claim, system, name, pieces, position)

    def by_rule(rows, name):
        if isinstance(rows, pd.DataFrame):
            at = [[row_of[w] for w in rows["window"]], rows["query"], rows["key"]]
            return 1 + int(judge.pattern[tuple(map(np.asarray, at))].argmin())
        line = judge.pattern[row_of[rows.window], rows.query]
        return 10 * int((line[1:].max() if rows.scorer == "detection" else line[rows.key]) > 0.1)

    planted = items[(items["layer"] < 0) & (items["scorer"] != "simulation")]
    judge = Judge(planted, respond=by_rule)
    run = judge_world(tmp_path, planted, judge, planted_records(4), controls=("swapped",))
    aucs = run.scores[
        run.scores["metric"].str.startswith("auc") & (run.scores["status"] == "scored")
    ]
    assert (aucs[aucs["control"] == "none"]["value"] == 1).all() and len(aucs) >= 26
    assert abs(aucs[aucs["control"] == "swapped"]["value"].mean() - 0.5) < 0.08
    assert (run.metric("accuracy")["value"] == 1).all()
    assert (
        run.scores["q_value"].isna().all()
    )  # they are no heads among which anything is discovered


def test_planted_units_are_all_different_and_in_plain_english():
    records = planted_records(8)
    assert len(FORMS) == 8 and len({r["text"] for r in records}) == 8
    assert records[0]["text"].startswith(
        "Attends to the latest earlier copy of the same token (90 %)"
    )
    assert list(planted_programs(3)) == ["planted.1", "planted.2", "planted.3"]
    assert planted_records(0) == []
