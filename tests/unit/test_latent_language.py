"""Latents explained and judged by a language model behind a real HTTP server, from the files of the workflow."""

from __future__ import annotations

import json

import numpy as np
import pytest
from asked_world import script
from judge_world import read_block
from latent_results_world import latent_data, planted_rules, write_world
from llm_server import LlmServer, _defaults, endpoint_config, llm_config

from mechatlas.explain.language import ask_settings, first_requests
from mechatlas.explain.latents.conditions import Matches, OfClass, OneOf, Seen
from mechatlas.explain.latents.evidence import LatentCases, quiet_events
from mechatlas.explain.latents.notation import (
    CONDITIONS,
    DESCRIPTION,
    parse_conditions,
    parse_rules,
)
from mechatlas.explain.latents.prompts import latent_dialogue, system_prompt
from mechatlas.explain.llm.settings import endpoint_from
from mechatlas.explain.vocabulary import Vocabulary
from mechatlas.io import UserError, read_jsonl, read_table, write_table
from mechatlas.score.judge.expected import latent_judge_requests, latent_requests

VOCABULARY = Vocabulary(["<bos>", " the", " of", "ing", " cat"], 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def reply(text="Active on names.", program=None):
    return json.dumps({"notes": "x", "text": text, "program": program})


def ask(world, folder, server, judge=None, **changes):
    openai = endpoint_config(server, **{"program": True, **changes})
    at = {key: openai.pop(key) for key in ("base_url", "api_key_env")}
    path = folder / "openai.jsonl"
    script("ask_latents").main(
        **world, bos=None, openai={**openai, "provider": "test"}, openai_at=at, judge=judge,
        judge_at={}, llm=llm_config(folder / "store.sqlite"), seed=0, explanations=str(path),
    )  # fmt: skip
    return read_jsonl(path), path


def test_every_latent_is_asked_about_once_and_its_rules_are_read(world, tmp_path):
    token = json.dumps(latent_data(world).vocabulary.texts[20])
    program = [{"strength": 5, "conditions": f"tokens({token}) & seen(False, back=1)"}]
    with LlmServer(lambda call: reply(program=program)) as server:
        records, _ = ask(world, tmp_path, server)
        calls = server.chats()
        again, _ = ask(world, tmp_path, server)
        assert len(server.chats()) == len(calls) == len(records) == len(planted_rules())
    assert again == records
    for record in records:
        assert record["status"] == "explained" and record["explainer"] == "openai"
        assert record["unit"] == f"L0.resid_mid.F{record['latent']}"
        assert -1 <= record["validation_correlation"] <= 1
        (rule,) = record["program"]["parts"]
        assert [c["on"] for c in rule["conditions"]] == ["tokens", "seen"]
        assert rule["conditions"][0]["tokens"] == [20] and rule["conditions"][1]["back"] == 1
    # A strength of 10 is the largest train activation.
    top = {0: 2.0, 3: 1.0, 5: 3.0, 9: 1.0}
    values = {r["latent"]: r["program"]["parts"][0]["value"] for r in records}
    assert values == {latent: pytest.approx(v / 2) for latent, v in top.items()}


def test_prompts_show_train_events_and_hard_negatives_only(world, tmp_path):
    with LlmServer(lambda call: reply()) as server:
        ask(world, tmp_path, server, examples=12, negatives=6)
        calls = server.chats()
    data = latent_data(world)
    texts = data.vocabulary.texts
    rules = planted_rules()
    for call in calls:
        system = call.body["messages"][0]["content"]
        assert "latent" in system and "QUERY" not in system and "attention" not in system
        head, *lines = read_block(call)
        assert list(head) == ["active on percent of tokens"]
        numbers = [line[0] for line in lines if line[0] != "no"]
        assert numbers == sorted(numbers, reverse=True) and numbers[0] == 10 and min(numbers) >= 1
        assert len(numbers) == 12 and len(lines) == 18
    # The shown tokens are those of train documents, with the activity that the rules give them.
    cases = list(LatentCases(data, world["events"], _openai(12, 6), 0))
    split_of = dict(zip(data.table["doc"].astype(str), data.table["split"], strict=True))
    for case, latent in zip(cases, rules, strict=True):
        for example in (*case.evidence.active, *case.evidence.inactive):
            assert split_of[example.doc] == "train"
            tokens = data.tokens(np.array([example.window]))
            value = rules[latent](tokens)[0, example.place[0]]
            assert (value > 0) == example.label
            assert example.pieces[-1] == texts[tokens[0, example.place[0]]]


def _openai(examples, negatives, **changes):
    return {
        **endpoint_config("http://127.0.0.1:1/v1"), "examples": examples, "negatives": negatives, **changes,
    }  # fmt: skip


def test_an_unusable_reply_is_asked_again_and_a_bad_program_keeps_the_text(world, tmp_path):
    def answer(call):
        return (
            "I would say"
            if len(call.body["messages"]) == 2
            else reply(program=[{"strength": 50, "conditions": "seen()"}])
        )

    with LlmServer(answer) as server:
        records, _ = ask(world, tmp_path, server)
        assert len(server.chats()) == 2 * len(records)
    for record in records:
        assert record["text"] == "Active on names." and record["program"] is None
        assert "between 0 and 10" in record["program_error"]


def test_candidates_are_compared_on_validation_documents(world, tmp_path):
    data = latent_data(world)
    cases = list(LatentCases(data, world["events"], _openai(8, 4, candidates=2), 0))
    split_of = dict(zip(data.table["doc"].astype(str), data.table["split"], strict=True))
    for case in cases:
        assert case.compare and case.probe
        documents = [{e.doc for e in part} for part in (case.compare, case.probe)]
        assert not documents[0] & documents[1]
        assert {split_of[d] for d in documents[0] | documents[1]} == {"validation"}
        labels = [e.label for e in case.compare]
        assert labels.count(True) == labels.count(False)


def test_quiet_events_take_the_kinds_in_turn(world):
    events = read_table(world["events"], filters=[("split", "==", "train"), ("latent", "==", 0)])
    chosen = quiet_events(events, 9)
    assert (chosen["activation"] == 0).all() and len(chosen) == 9
    assert set(chosen["role"]) == {"negative_similar", "negative_coactive", "random"}
    assert not chosen.duplicated(["window", "position"]).any()


def test_forecasts_are_what_is_asked(world, tmp_path):
    openai = _openai(12, 6)
    place = {"model": world["model"], "bos": None, "explanations": []}
    expected = list(
        latent_requests(place, world["windows"], world["activations"], world["events"], openai, 0)
    )
    with LlmServer(lambda call: reply()) as server:
        ask(world, tmp_path, server, examples=12, negatives=6, program=openai["program"])
        sent = [json.dumps(call.body["messages"]) for call in server.chats()]
    assert sorted(json.dumps(list(r.messages)) for r in expected) == sorted(sent)


def test_judge_reads_the_files_of_latents(world, tmp_path):
    scorers = ["detection", "fuzzing", "simulation", "firing"]
    judge = {**_defaults("judge"), "model": "scripted", "scorers": scorers, "planted": 2}
    judge |= {"controls": ["swapped"], "provider": "test"}
    sizes = {"items": 20, "pairs": 10, "sequences": 10, "trials": 10, "context_tokens": 6}
    items, programs = str(tmp_path / "items.parquet"), tmp_path / "programs.jsonl"
    script("explain_latents").main(
        world["windows"], world["activations"], world["model"], None,
        {"max_conditions": 2, "max_rules": 1, "max_entries": 50, "parsimony": 0.02}, [], 0, str(programs),
    )  # fmt: skip
    script("select_latent_items").main(
        [str(programs)], world["windows"], world["activations"], world["model"], None, scorers,
        {**sizes, "max_per_document": 5}, 2, 0.2, 0, items,
    )  # fmt: skip
    table = read_table(items)
    units = table[table["layer"] >= 0].groupby("unit")["head"].first().to_dict()
    assert units == {f"L0.resid_mid.F{latent}": latent for latent in planted_rules()}
    assert table.loc[table["item"] != "", "program_prediction"].notna().all()
    with LlmServer(yes) as server:
        at = {"base_url": server.base_url, "api_key_env": None}
        judge = {k: v for k, v in judge.items() if k not in at}
        script("judge_latents").main(
            items, [str(programs)], judge, judge_at=at, llm=llm_config(tmp_path / "s.sqlite"), seed=0,
            judgements=tmp_path / "judgements.parquet", usage=tmp_path / "usage.parquet",
        )  # fmt: skip
        place = {"model": world["model"], "bos": None, "explanations": [str(programs)]}
        expected = latent_judge_requests(place, items, {**judge, **at}, ["programs"], 0)
        assert len(list(expected)) <= len(server.chats())
    script("summarise_latent_judgements").main(
        test_items=items, judgements=tmp_path / "judgements.parquet",
        usage=tmp_path / "usage.parquet", scores=tmp_path / "scores.parquet", bootstrap=50,
        confidence=0.95, fdr=0.05, active_share=0.2, seed=0,
    )  # fmt: skip
    scores = read_table(tmp_path / "scores.parquet")
    own = scores[(scores["explainer"] == "programs") & (scores["control"] == "none")]
    # A judge that always says yes knows nothing; the program does on the same items.
    auc = own[(own["scorer"] == "fuzzing") & (own["metric"] == "auc")]
    assert len(auc) == len(units) and (auc["value"] == 0.5).all() and (auc["program"] > 0.95).all()
    recall = own[own["metric"] == "recall"]
    precision = own[own["metric"] == "precision"]
    assert (recall["value"] == 1).all() and (precision["value"] < 0.2).all()
    # Of the two planted ones, one is of a class of tokens that this text lacks.
    assert {"planted.1", "planted.2"} & set(scores["unit"])


def yes(call):
    claim, *lines = read_block(call)
    assert claim["claim"]
    if "lists the tokens" in call.body["messages"][0]["content"]:
        return json.dumps({"values": [e["check"] if isinstance(e, dict) else 0 for e in lines[0]]})
    answers = [
        {"id": name, "value": first["check"] if isinstance(first, dict) else 10}
        for name, first, *_ in lines
    ]
    return json.dumps({"answers": answers})


def test_notation_is_read_and_refused():
    text = 'class("numeral") & tokens(" the", " of", back=2) & regex("ing$", back=1) & seen(False)'
    conditions = parse_conditions(text, VOCABULARY)
    assert conditions == (
        OfClass(name="numeral"),
        OneOf(tokens=(1, 2), back=2),
        Matches(pattern="ing$", back=1),
        Seen(seen=False),
    )
    program = parse_rules([(10, "seen()"), (2.5, 'tokens("ing")')], VOCABULARY, 4.0)
    assert [part.value for part in program.parts] == [4.0, 1.0]
    for bad, why in (
        ('tokens(" dog")', "no single token"),
        ("__import__('os')", "unknown condition"),
        ("seen() or seen()", "not of the form"),
        ("seen(", "not of the form"),
        ('regex("(")', "regular expression"),
        ("seen(back=99)", "back"),
        ("tokens(open)", "only texts"),
        ('position("page", 1)', "position"),
    ):
        with pytest.raises(UserError, match=why):
            parse_rules([(1, bad)], VOCABULARY, 1.0)


def test_the_prompt_describes_every_condition():
    assert all(f"{name}(" in DESCRIPTION for name in CONDITIONS)
    assert DESCRIPTION in system_prompt(True) and DESCRIPTION not in system_prompt(False)


def test_dialogue_first_requests_are_one_per_candidate(world):
    data = latent_data(world)
    openai = _openai(8, 4, candidates=3, temperature=0.7)
    cases = LatentCases(data, world["events"], openai, 0)
    settings = ask_settings(openai, endpoint_from(openai))
    requests = list(first_requests(cases, settings, latent_dialogue(data.vocabulary)))
    assert len(requests) == 3 * len(cases)


def test_events_of_another_split_are_refused(world, tmp_path):
    events = read_table(world["events"])
    wrong = events.assign(split=events["split"].replace({"test": "train"}))
    path = tmp_path / "raw_events.parquet"
    write_table(path, wrong, {})
    with pytest.raises(UserError, match="of the split test"):
        list(LatentCases(latent_data(world), path, _openai(400, 4), 0))
