"""The explainer that asks a language model, over HTTP, with replies of every kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from asked_world import ask, capture, cases, reply
from llm_server import Call, LlmServer, Reply

from mechatlas.explain.candidates import Candidate, best_of, criterion, pair_auc, worst_failures
from mechatlas.explain.data_block import EXPLANATION_LENGTH
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.evidence import Evidence
from mechatlas.explain.excerpts import Example
from mechatlas.explain.fit import intersection_over_union
from mechatlas.explain.language import ask_settings, explain_units, first_requests
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.settings import endpoint_from, llm_settings_from
from mechatlas.explain.programs import parse_program
from mechatlas.explain.records import read_explanations
from mechatlas.explain.validation import Validation
from mechatlas.io import UserError

PREVIOUS = [{"share": 0.5, "form": "previous(offset=1)"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return capture(tmp_path_factory.mktemp("world"))


def turns(call: Call) -> int:
    """How many answers of the model a request holds: 0 when it is asked first."""
    return sum(message["role"] == "assistant" for message in call.body["messages"])


def asked(call: Call) -> str:
    return call.body["messages"][-1]["content"]


# --- records --------------------------------------------------------------------------------------


def test_every_head_gets_a_record_that_the_pipeline_reads(
    world: dict[str, Any], tmp_path: Path
) -> None:
    with LlmServer(lambda call: reply(program=PREVIOUS)) as server:
        records = ask(world, server, tmp_path)
        again = ask(world, server, tmp_path)
        assert len(server.chats()) == 16
    assert again == records
    assert [r["unit"] for r in records] == [f"L{a}.H{b}" for a in range(2) for b in range(8)]
    for record in records:
        assert record["text"] == "Attends to the previous token." and record["reason"] == ""
        assert (record["explainer"], record["control"]) == ("openai", "none")
        assert record["kind"] == "rules" and record["status"] == "explained"
        assert record["requests"] == 1 and record["prompt_tokens"] > 500
        assert record["price"] is None and record["chosen_by"] == "single"
    parsed = read_explanations([tmp_path / "openai.jsonl"])
    data = HeadData(world["windows"], world["chunks"], world["model"], None)
    sample = data.sample("validation", 1)
    direct = intersection_over_union(
        parsed[11]["program"].predict(sample.view), sample.patterns[:, 3]
    )
    assert records[11]["validation_iou"] == pytest.approx(direct, abs=1e-6)


def test_only_train_documents_are_shown(world: dict[str, Any], tmp_path: Path) -> None:
    with LlmServer(lambda call: reply()) as server:
        ask(world, server, tmp_path)
        shown = "".join(asked(call) for call in server.chats())
    windows = pd.read_parquet(world["windows"])
    data = HeadData(world["windows"], world["chunks"], world["model"], None)
    tokens = windows.groupby("split")["tokens"].apply(list)
    train = "\n".join("".join(data.tokenizer.strings(t)) for t in tokens["train"])

    def stretches(split: str) -> set[str]:
        """Texts of six tokens."""
        starts = ((t, i) for t in tokens[split] for i in range(1, 42, 3))
        texts = {"".join(data.tokenizer.strings(t[i : i + 6])) for t, i in starts}
        return {text for text in texts if text.isprintable() and not set(text) & set('"\\')}

    assert sum(text in shown for text in stretches("train")) > 50
    for split in ("validation", "test"):
        own = {text for text in stretches(split) if text not in train}
        assert len(own) > 50 and not [text for text in own if text in shown]


def test_the_evidence_says_how_many_pairs(world: dict[str, Any], tmp_path: Path) -> None:
    with LlmServer(lambda call: reply()) as server:
        records = ask(world, server, tmp_path, max_heads=3, examples=5, negatives=2, program=False)
        assert len(records) == len(server.chats()) == 3
        body = server.chats()[0].body
    assert body["messages"][1]["content"].count("\n") == 2 + 5 + 2
    assert "program" not in json.dumps(body["response_format"])
    stats = pd.read_parquet(world["head_stats"]).query("split == 'train'")
    largest = stats.nlargest(3, "write_norm")[["layer", "head"]].to_numpy().tolist()
    assert sorted([r["layer"], r["head"]] for r in records) == sorted(largest)


# --- replies --------------------------------------------------------------------------------------


def one(world: dict[str, Any], tmp_path: Path, answer: Any, **changes: Any) -> tuple[dict, list]:
    """Explain one head; return its record and what was asked."""
    with LlmServer(answer) as server:
        (record,) = ask(world, server, tmp_path, max_heads=1, **changes)
        return record, server.chats()


def test_a_malformed_reply_is_asked_for_once_more(world: dict[str, Any], tmp_path: Path) -> None:
    record, chats = one(
        world, tmp_path, lambda c: reply(program=PREVIOUS) if turns(c) else "Well, it attends to"
    )
    assert record["text"] == "Attends to the previous token." and record["requests"] == 2
    assert len(chats) == 2 and "not one JSON object" in asked(chats[1])
    assert chats[1].body["messages"][2] == {"role": "assistant", "content": "Well, it attends to"}
    assert record["prompt_tokens"] > chats[0].body["max_tokens"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the answer is empty"),
        ('{"text":"\u200b \\n"}', "text: is empty"),
        ('{"words":"a"}', "text: is missing"),
        ("\ud800\udfff\ud800", "not one JSON object"),
    ],
)
def test_a_head_whose_replies_cannot_be_read_is_unexplained_with_the_reason(
    world: dict[str, Any], tmp_path: Path, text: str, reason: str
) -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    record, chats = one(world, tmp_path, lambda call: Reply(text, usage=counts))
    assert record["status"] == "unexplained" and record["text"] == ""
    assert reason in record["reason"] and len(chats) == 2 and record["program"] is None
    assert record["requests"] == 2 and record["kind"] == "text"


def test_a_refusal_is_not_asked_again(world: dict[str, Any], tmp_path: Path) -> None:
    record, chats = one(world, tmp_path, lambda call: Reply("", refusal="I cannot"))
    assert len(chats) == 1 and record["reason"] == "the model refused to answer"
    record, chats = one(world, tmp_path / "cut", lambda call: Reply('{"te', finish_reason="length"))
    assert len(chats) == 2 and record["reason"] == "the answer was cut off at max_tokens"


def test_a_wrong_program_is_asked_for_once_more_and_does_not_lose_the_text(
    world: dict[str, Any], tmp_path: Path
) -> None:
    wrong = [{"share": 0.5, "form": "telepathy()"}]
    record, chats = one(
        world, tmp_path, lambda c: reply("B", PREVIOUS) if turns(c) else reply("A", wrong)
    )
    assert record["text"] == "B" and record["program"]["parts"][0]["form"]["form"] == "previous"
    assert "unknown form 'telepathy'" in asked(chats[1])
    for kind, second in (("again", reply("B", wrong)), ("rubbish", "?"), ("none", reply("B"))):
        record, _ = one(
            world,
            tmp_path / kind,
            lambda c, second=second: second if turns(c) else reply("A", wrong),
        )
        assert record["text"] == "A", kind
        assert record["program"] is None and record["validation_iou"] is None
        assert record["program_error"] == "part 1: unknown form 'telepathy'"
        assert record["status"] == "explained" and record["reason"] == ""


@pytest.mark.parametrize(
    "program", ["previous()", {"parts": []}, [["a"]], [{"share": "1", "form": "self()"}]]
)
def test_a_program_of_another_form_does_not_lose_the_text(
    world: dict[str, Any], tmp_path: Path, program: Any
) -> None:  # fmt: skip
    record, chats = one(world, tmp_path, lambda call: reply("A", program))
    assert record["text"] == "A" and record["program_error"].startswith("program")
    assert len(chats) == 2


def test_no_program_and_an_empty_program_are_told_apart(
    world: dict[str, Any], tmp_path: Path
) -> None:
    record, _ = one(world, tmp_path / "a", lambda call: reply(program=None))
    assert record["program"] is None and record["program_error"] == ""
    record, _ = one(world, tmp_path / "b", lambda call: reply(program=[]))
    assert parse_program(record["program"]).sink == 1 and record["kind"] == "rules"
    assert record["validation_iou"] > 0


def test_explanations_are_cleaned_whatever_the_model_writes(
    world: dict[str, Any], tmp_path: Path
) -> None:
    hostile = "Attends\n\nto </script> \u202eevil\x1b[31m \ud800" + "x" * 1000
    record, _ = one(world, tmp_path, lambda call: reply(hostile))
    assert record["text"].startswith("Attends to </script> evil[31m xxx")
    assert len(record["text"]) == EXPLANATION_LENGTH and record["text"].isprintable()


# --- candidates and revision ----------------------------------------------------------------------


def test_candidates_are_compared_by_their_programs(world: dict[str, Any], tmp_path: Path) -> None:
    programs = {
        "A": [{"share": 1.0, "form": "opener()"}],
        "B": None,
        "C": [{"share": 0.3, "form": "delimiter()"}],
    }

    def answer(call: Call) -> str:
        text = "ABC"[call.number % 3]
        return reply(text, programs[text])

    record, chats = one(world, tmp_path, answer, candidates=3)
    assert len(chats) == 3 and len({c.headers["idempotency-key"] for c in chats}) == 3
    assert record["chosen_by"] == "program" and record["requests"] == 3
    matches = {c["text"]: c["match"] for c in record["candidates"]}
    assert matches["B"] is None and record["text"] == max("AC", key=lambda name: matches[name])


def validation_pairs(call: Call) -> list[Any]:
    """What the judge is asked about: its data without the claim."""
    lines = asked(call).split("\n")
    return [json.loads(line) for line in lines if line.startswith("[")]


def judge_config(server: LlmServer) -> dict[str, Any]:
    """The configuration's judge, at the same server, told from the explainer by its model."""
    from llm_server import _defaults

    section = {**_defaults("judge"), "scorers": ["fuzzing"], "model": "judge"}
    return section | {"base_url": server.base_url, "api_key_env": None, "provider": "test"}


def fair_judge(truth: dict[str, bool], believed: str) -> Any:
    """Return a judge that knows the right answer where the claim is ``believed``, and else says 5."""

    def answer(call: Call) -> str:
        lines = validation_pairs(call)
        right = json.dumps({"claim": believed}, separators=(",", ":")) in asked(call)
        answers = []
        for name, *pieces in lines:
            if isinstance(pieces[0], dict):
                value = pieces[0]["check"]
            else:
                value = (9 if truth[json.dumps(pieces)] else 1) if right else 5
            answers.append({"id": name, "value": value})
        return json.dumps({"answers": answers})

    return answer


def known_pairs(world: dict[str, Any], **changes: Any) -> dict[str, bool]:
    every = [e for c in cases(world, **changes) for e in (*c.compare, *c.probe)]
    return {json.dumps(e.values): e.label for e in every}


def test_candidates_are_compared_by_the_judge_if_there_is_one(
    world: dict[str, Any], tmp_path: Path
) -> None:
    judge = fair_judge(known_pairs(world, candidates=3), believed="C")

    def answer(call: Call) -> str:
        if call.body["model"] == "judge":
            return judge(call)
        return reply("ABC"[call.number % 3], PREVIOUS)

    with LlmServer(answer) as server:
        (record,) = ask(
            world, server, tmp_path, max_heads=1, candidates=3, judge=judge_config(server)
        )
        chats = server.chats()
    judged = [c for c in chats if c.body["model"] == "judge"]
    assert record["text"] == "C" and record["chosen_by"] == "judge"
    assert [c["judge_auc"] for c in record["candidates"]] in (
        *([1.0 if c["text"] == "C" else 0.5 for c in record["candidates"]],),
    )
    assert record["requests"] == len(chats) == 3 + len(judged) and judged


def test_a_revision_shows_failures_of_other_documents_and_the_better_text_is_kept(
    world: dict[str, Any], tmp_path: Path
) -> None:
    truth = known_pairs(world, revise=True)
    (case,) = (c for c in cases(world, max_heads=1, revise=True))
    for believed in ("A", "B"):
        judge = fair_judge(truth, believed)

        def answer(call: Call, judge: Any = judge) -> str:
            if call.body["model"] == "judge":
                return judge(call)
            return reply("B" if turns(call) else "A")

        with LlmServer(answer) as server:
            (record,) = ask(
                world, server, tmp_path / believed, max_heads=1, revise=True, judge=judge_config(server)
            )  # fmt: skip
            revisions = [c for c in server.chats() if c.body["model"] != "judge" and turns(c)]
        assert record["text"] == believed
        if believed == "A":  # nothing to revise
            assert not revisions and record["chosen_by"] == "single"
            assert record["requests"] > 1
            continue
        assert record["chosen_by"] == "judge"
        assert [c["judge_auc"] for c in record["candidates"]] == [0.5, 1.0]
        shown = [pieces for _, *pieces in validation_pairs(revisions[0])]
        probe = [e.values for e in case.probe]
        compared = [e.values for e in case.compare]
        assert shown and all(p in probe and p not in compared for p in shown)


def test_without_a_judge_a_revision_goes_by_the_program(
    world: dict[str, Any], tmp_path: Path
) -> None:
    def answer(call: Call) -> str:
        if turns(call):
            return reply("B", [{"share": 0.9, "form": "self()"}])
        return reply("A", [])

    record, chats = one(world, tmp_path, answer, revise=True)
    assert len(chats) == 2 and record["chosen_by"] == "program" and len(record["candidates"]) == 2
    best = max(record["candidates"], key=lambda c: c["match"])
    assert record["text"] == best["text"]
    # The empty program misses every pair and claims none.
    assert [line[0] for line in validation_pairs(chats[1])].count("no") == 0


def test_a_revision_that_cannot_be_read_leaves_the_text(
    world: dict[str, Any], tmp_path: Path
) -> None:
    record, chats = one(world, tmp_path, lambda c: "?" if turns(c) else reply("A", []), revise=True)
    assert len(chats) == 3 and record["text"] == "A" and record["status"] == "explained"


# --- what a run costs, and runs again -------------------------------------------------------------


def test_a_run_is_replayed_offline_to_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    prices = {"scripted": {"input": 1.0, "cached_input": None, "output": 2.0}}
    with LlmServer(lambda call: reply(program=PREVIOUS)) as server:
        live = ask(world, server, tmp_path, llm={"prices": prices}, candidates=2)
    first = (tmp_path / "openai.jsonl").read_bytes()
    facts = (tmp_path / "openai.jsonl.provenance.json").read_bytes()
    nowhere = "http://127.0.0.1:1/v1"
    again = ask(world, nowhere, tmp_path, llm={"mode": "replay", "prices": {}}, candidates=2)
    assert (tmp_path / "openai.jsonl").read_bytes() == first and again == live
    assert (tmp_path / "openai.jsonl.provenance.json").read_bytes() == facts
    assert all(record["price"] > 0 for record in live)
    with pytest.raises(UserError, match="replay"):
        ask(world, nowhere, tmp_path, llm={"mode": "replay"}, candidates=3)


def test_the_forecast_is_what_is_sent(world: dict[str, Any], tmp_path: Path) -> None:
    with LlmServer(lambda call: reply()) as server:
        ask(world, server, tmp_path, max_heads=4, candidates=2)
        sent = {call.headers["idempotency-key"] for call in server.chats()}
    from llm_server import endpoint_config

    openai = endpoint_config("http://127.0.0.1:1/v1", candidates=2, provider="test")
    planned = first_requests(
        cases(world, max_heads=4, candidates=2), ask_settings(openai, endpoint_from(openai))
    )
    assert {request.key for request in planned} == sent and len(sent) == 8


def test_a_head_without_events_is_not_asked_about(world: dict[str, Any], tmp_path: Path) -> None:
    from llm_server import endpoint_config, llm_config

    nothing = Evidence(0, 0, (), (), 1.0, 0.0)
    openai = endpoint_config("http://127.0.0.1:1/v1")
    case = next(iter(cases(world)))
    works = explain_units(
        [type(case)(nothing)],
        ask_settings(openai, endpoint_from(openai)),
        Validation(HeadData(world["windows"], world["chunks"], world["model"], None)),
    )
    settings = llm_settings_from(llm_config(tmp_path / "store.sqlite"))
    (record,) = run_units(settings, works, "explain")
    assert record["status"] == "unexplained" and "no train event" in record["reason"]
    assert record["requests"] == 0


# --- choices --------------------------------------------------------------------------------------


def candidate(text: str = "a", **values: Any) -> Candidate:
    if values.pop("program", values.get("match") is not None):
        values["program"] = parse_program({"parts": []})
    return Candidate(text, **values)


@pytest.mark.parametrize(
    ("candidates", "by", "best"),
    [
        ([candidate(), candidate()], "first", 0),
        ([candidate(""), candidate()], "first", 1),
        ([candidate(match=0.2), candidate(match=0.3)], "program", 1),
        ([candidate(), candidate(match=0.1)], "program", 1),
        ([candidate(match=0.2), candidate(match=0.2)], "program", 0),
        ([candidate(match=0.9, auc=0.6), candidate(match=0.1, auc=0.7)], "judge", 1),
        ([candidate(match=0.9), candidate(auc=0.2)], "judge", 1),
    ],
)
def test_best_of(candidates: list[Candidate], by: str, best: int) -> None:
    assert criterion(candidates) == by and best_of(candidates) == best


def test_pair_auc_is_that_of_the_library() -> None:
    from sklearn.metrics import roc_auc_score

    ratings: Sequence[float | None] = [1, 5, 5, None, 9, 2, 5, 7]
    labels = [False, False, True, True, True, False, True, False]
    known = [i for i, r in enumerate(ratings) if r is not None]
    expected = roc_auc_score([labels[i] for i in known], [ratings[i] for i in known])
    assert pair_auc(ratings, labels) == pytest.approx(expected)
    assert pair_auc([1, None], [True, False]) is None and pair_auc([], []) is None


def test_failures_are_the_worst_of_both_kinds() -> None:
    examples = [Example(str(i), ("",), (), 0.0, i % 2 == 0, "d", 0, (1, 1)) for i in range(20)]
    values: list[float | None] = [float(i % 11) for i in range(19)] + [None]
    failures = worst_failures(examples, values, 5.0)
    missed = [e for e in failures if e.label]
    claimed = [e for e in failures if not e.label]
    assert [e.item for e in missed] == ["0", "12", "2", "14"]
    assert [e.item for e in claimed] == ["9", "7", "17", "5"]
    assert worst_failures(examples, [None] * 20, 5.0) == []
