"""The client against a server that misbehaves: retries, refusals, pace, order, memory of what was asked."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from llm_server import (
    DROPPED,
    MALFORMED,
    SERVER_ERROR,
    TOO_MANY,
    TRUNCATED,
    Call,
    Fault,
    LlmServer,
    Reply,
    echo,
    failure,
)
from llm_works import asking, request, run, settings, texts

from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.failures import retry_after
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError

KEY = "sk-marker-0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "responses.sqlite"


def first(fault: Fault):
    """Return an answer function that fails once for each request."""

    def answer(call: Call) -> str | Fault:
        return fault if call.attempt == 0 else echo(call)

    return answer


@pytest.mark.parametrize(
    ("fault", "maybe_billed"),
    [
        (TOO_MANY, False),
        (SERVER_ERROR, False),
        (failure(503, "overloaded", retry_after_ms="20"), False),
        (failure(408, "too slow"), False),
        (failure(409, "conflict"), False),
        (DROPPED, True),
        (TRUNCATED, True),
        (MALFORMED, True),
        (Fault(body={"error": {"message": "no provider", "code": 502}}), True),
        (Fault(body={"choices": []}), True),
        (Fault(body=[1]), True),
        (Fault(delay=1.5), True),
    ],
    ids="429 500 503 408 409 dropped truncated malformed error-in-200 no-choice list time-out".split(),
)
def test_passing_faults_are_asked_again(store, fault, maybe_billed):
    with LlmServer(first(fault)) as server:
        given = settings(store, timeout=0.5 if fault.delay else 30)
        assert run(given, server, texts(4)) == texts(4)
        assert len(server.chats()) == 8
        assert len(server.answered()) == 4
        assert run(given, server, texts(4)) == texts(4)
        assert len(server.chats()) == 8, "stored answers are not asked again"
    with ResponseStore(store) as kept:
        lost = next(kept.rows("SELECT count(*) FROM reservations WHERE state = 'lost'"))[0]
        assert lost == (4 if maybe_billed else 0), "what may have been billed counts as spent"
        assert next(kept.rows("SELECT count(*) FROM reservations WHERE state = 'open'"))[0] == 0


def test_a_response_that_is_no_answer_is_kept_for_inspection(store):
    with LlmServer(first(MALFORMED)) as server:
        run(settings(store), server, ["a"])
    with ResponseStore(store) as kept:
        assert '"mess' in next(kept.rows("SELECT note FROM reservations"))[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (failure(400, "temperature is not supported"), "temperature is not supported"),
        (failure(401, "who are you"), "set a valid one"),
        (failure(403, "not for you"), "set a valid one"),
        (failure(404, "The model `scripted` does not exist", "model_not_found"), "does not exist"),
        (failure(422, "no such field"), "no such field"),
        (failure(429, "You exceeded your quota", "insufficient_quota"), "no credit"),
    ],
    ids="400 401 403 404 422 quota".split(),
)
def test_refusals_stop_at_once_in_one_line(store, fault, words):
    def answer(call: Call) -> str | Fault:
        return fault if call.number >= 3 else echo(call)

    with LlmServer(answer) as server:
        with pytest.raises(UserError, match=words) as caught:
            run(settings(store, concurrency=2), server, texts(100))
        assert "\n" not in str(caught.value)
        assert server.base_url in str(caught.value)
        # Two were under way at most when the refusal came, and none is repeated.
        assert len(server.chats()) <= 6
        assert {call.attempt for call in server.chats()} == {0}
    with ResponseStore(store) as kept:
        assert len(kept.keys()) == 3


def test_requests_under_way_are_kept_when_another_is_refused(store):
    def answer(call: Call) -> Reply | Fault:
        if call.body["messages"][0]["content"] == "text 0":
            return Fault(400, {"error": {"message": "no"}}, delay=0.2)
        return Reply("late", delay=0.5)

    with LlmServer(answer) as server:
        with pytest.raises(UserError, match="400"):
            run(settings(store, concurrency=8), server, texts(50))
        assert len(server.answered()) == len(server.chats()) - 1 == 7
    with ResponseStore(store) as kept:
        assert len(kept.keys()) == 7


def test_a_request_without_an_answer_fails_the_run_but_no_other_request(store):
    def answer(call: Call) -> str | Fault:
        return SERVER_ERROR if call.body["messages"][0]["content"] == "text 3" else echo(call)

    with LlmServer(answer) as server:
        with pytest.raises(UserError, match=r"1 request stayed.*3 times.*status 500.*run again"):
            run(settings(store, retries=2), server, texts(20))
        assert len(server.answered()) == 19
        server.answer = echo
        assert run(settings(store), server, texts(20)) == texts(20)
        assert len(server.answered()) == 20
        assert server.repeated() == []


def test_the_breaker_stops_a_run_whose_endpoint_is_down(store):
    with LlmServer(lambda call: SERVER_ERROR) as server:
        with pytest.raises(UserError, match="5 requests in a row failed"):
            run(settings(store, retries=1, breaker=5, concurrency=4), server, texts(500))
        assert len(server.chats()) < 50


def test_answers_reset_the_breaker(store):
    def answer(call: Call) -> str | Fault:
        number = int(call.body["messages"][0]["content"].split()[1])
        return SERVER_ERROR if number % 2 else echo(call)

    with LlmServer(answer) as server:
        given = settings(store, retries=0, breaker=5, concurrency=1)
        with pytest.raises(UserError, match="20 requests stayed without an answer"):
            run(given, server, texts(40))


def test_an_endpoint_that_is_gone(store):
    with LlmServer() as server:
        address = server.base_url
    with pytest.raises(UserError, match="connection lost"):
        run(settings(store, retries=0), address, texts(3))
    with ResponseStore(store) as kept:
        assert next(kept.rows("SELECT count(*) FROM reservations"))[0] == 0, "nothing was sent"


def test_retry_after_pauses_everyone(store):
    def answer(call: Call) -> Fault | str:
        return failure(429, "wait", retry_after="0.6") if call.number == 0 else echo(call)

    with LlmServer(answer) as server:
        run(settings(store, concurrency=2), server, texts(10))
        arrivals = [call.arrived for call in server.chats()]
    # A few requests may have been sent before the refusal came back; everything else waited.
    assert len(arrivals) == 11
    assert sum(t - arrivals[0] >= 0.55 for t in arrivals) >= 7


def test_retry_after_is_read_in_all_its_forms():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert 28 < retry_after({"retry-after": date}) <= 30
    assert retry_after({"retry-after": "soon"}) == 0
    assert retry_after({}) == 0


def test_requests_per_minute_are_never_exceeded(store):
    with LlmServer() as server:
        run(settings(store, requests_per_minute=1200), server, texts(20))
        arrivals = sorted(call.arrived for call in server.chats())
    # 1200 a minute are one every 50 ms. A busy machine makes arrivals uneven, but lets no burst through.
    assert arrivals[-1] - arrivals[0] > 19 * 0.05 * 0.9
    assert all(b - a >= 0.25 for a, b in zip(arrivals, arrivals[10:], strict=False))


def test_tokens_per_minute_slow_large_requests_down(store):
    with LlmServer() as server:
        # 600 answer tokens each and a few of prompt: 120,000 a minute are about 3.3 requests a second.
        start = time.monotonic()
        run(settings(store, tokens_per_minute=120_000), server, texts(5))
        assert 1.15 < time.monotonic() - start < 3.0


def test_concurrency_is_reached_and_not_exceeded(store):
    with LlmServer(delay=0.05) as server:
        run(settings(store, concurrency=7), server, texts(60))
        assert server.most_under_way == 7


def test_results_do_not_depend_on_the_order_of_completion(tmp_path):
    rng = random.Random(0)

    async def unit(ask, server, name):
        one, two = await asyncio.gather(
            ask(request(server, f"{name} one")), ask(request(server, f"{name} two"))
        )
        return (await ask(request(server, f"{one.text} then {two.text}"))).text

    def results(store, **changes):
        with LlmServer(lambda call: Reply(echo(call).upper(), delay=rng.random() / 20)) as server:
            works = (lambda ask, n=n: unit(ask, server, f"unit {n}") for n in range(30))
            return run_units(settings(store, **changes), works, "test", 30)

    one = results(tmp_path / "one.sqlite", concurrency=16)
    assert one == results(tmp_path / "two.sqlite", concurrency=1)
    assert one == [f"UNIT {n} ONE THEN UNIT {n} TWO" for n in range(30)]


def test_the_same_content_is_sent_once_at_a_time(store):
    with LlmServer(delay=0.1) as server:
        assert run(settings(store), server, ["same"] * 20) == ["same"] * 20
        assert len(server.chats()) == 1


def test_samples_of_the_same_question_are_asked_apart(store):
    with LlmServer(lambda call: f"answer {call.number}") as server:
        made = request(server, "question")
        works = [
            asking(Request(made.endpoint, made.messages, None, "test.1", sample=n))
            for n in range(3)
        ]
        answers = run_units(settings(store), works, "test")
        assert sorted(answers) == ["answer 0", "answer 1", "answer 2"]
        assert run_units(settings(store), works, "test") == answers
        bodies = [call.body for call in server.chats()]
        assert bodies[0] == bodies[1] == bodies[2]
        assert len({call.headers["idempotency-key"] for call in server.chats()}) == 3


def test_works_are_taken_lazily(store):
    taken = []

    def works(server):
        for number in range(100):
            taken.append(number)
            yield asking(request(server, f"text {number}"))

    def answer(call: Call) -> str:
        ahead.append(len(taken) - call.number)
        return echo(call)

    ahead: list[int] = []
    with LlmServer(answer) as server:
        run_units(settings(store, concurrency=4), works(server), "test", 100)
    assert max(ahead) <= 8


def test_an_error_in_a_work_ends_the_run_with_it(store):
    async def broken(ask):
        await ask(request(server, "first"))
        raise ZeroDivisionError("a bug")

    with LlmServer(delay=0.05) as server:
        works = [broken, *(asking(request(server, text)) for text in texts(200))]
        with pytest.raises(ZeroDivisionError, match="a bug"):
            run_units(settings(store, concurrency=2), works, "test")
        assert len(server.answered()) == len(server.chats()) < 20
    with ResponseStore(store) as kept:
        assert len(kept.keys()) == len(server.answered())


def test_a_refused_answer_is_an_answer(store):
    blocked = {"error": {"message": "blocked", "code": "content_filter"}}

    def answer(call: Call) -> Reply | Fault:
        return {
            "refusal": Reply("", refusal="I cannot"),
            "filtered": Reply("half of it", finish_reason="content_filter"),
            "blocked": Fault(400, blocked),
            "length": Reply("cut o", finish_reason="length"),
        }[echo(call)]

    async def work(ask):
        names = ("refusal", "filtered", "blocked", "length")
        answers = [await ask(request(server, name)) for name in names]
        return [(a.text, a.finish_reason) for a in answers]

    expected = [
        ("", "refusal"),
        ("", "content_filter"),
        ("", "content_filter"),
        ("cut o", "length"),
    ]
    with LlmServer(answer) as server:
        assert run_units(settings(store), [work], "test") == [expected]
        assert run_units(settings(store), [work], "test") == [expected]
        assert len(server.chats()) == 4


def test_logprobs_come_as_one_mapping_for_each_position(store):
    tops = [{"7": -0.1, "8": -2.5}, {"a": -0.3}]

    async def work(ask):
        made = request(server, "x")
        asked = Request(made.endpoint, made.messages, None, "test.1", top_logprobs=5, max_tokens=2)
        return (await ask(asked)).logprobs

    with LlmServer(lambda call: Reply("7a", logprobs=tops)) as server:
        assert run_units(settings(store), [work], "test") == [tops]
        body = server.chats()[0].body
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 5, 2)


def test_the_key_is_sent_and_appears_nowhere_else(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MARKED_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    store = tmp_path / "responses.sqlite"
    refusals = [
        failure(401, f"Incorrect API key provided: {KEY}"),
        failure(400, f"bad header Authorization: Bearer {KEY}"),
        failure(500, f"crashed on {KEY}"),
        Fault(body=f"not JSON but {KEY}".encode()),
    ]
    messages = []
    with LlmServer(lambda call: f"you sent {KEY}", key=KEY) as server:
        assert run(settings(store), server, ["x"], api_key_env="MARKED_KEY") == ["you sent [key]"]
        assert server.chats()[0].headers["authorization"] == f"Bearer {KEY}"
        for fault in refusals:
            server.answer = lambda call, fault=fault: fault
            with pytest.raises(UserError) as caught:
                run(settings(store, retries=0), server, ["y"], api_key_env="MARKED_KEY")
            messages.append(f"{caught.value} {caught.value!r} {caught.value.__context__!r}")
    with LlmServer(key="another") as server, pytest.raises(UserError, match="MARKED_KEY") as caught:
        run(settings(store), server, ["z"], api_key_env="MARKED_KEY")
    messages.append(str(caught.value))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    for place in (*messages, caplog.text, out, err):
        assert KEY not in place
        assert KEY[:12] not in place
    assert KEY.encode() not in written
    assert b"you sent [key]" in written


def test_a_missing_key_is_named(store, monkeypatch):
    monkeypatch.delenv("UNSET_KEY", raising=False)
    with LlmServer() as server, pytest.raises(UserError, match="UNSET_KEY is not set"):
        run(settings(store), server, ["x"], api_key_env="UNSET_KEY")


def test_progress_tells_rate_spend_and_time_left(store, caplog, monkeypatch):
    from mechatlas.explain.llm import reporter

    monkeypatch.setattr(reporter, "LOG_EVERY_SECONDS", 0.05)
    caplog.set_level(logging.INFO, logger="mechatlas")
    prices = {"scripted": {"input": 100.0, "cached_input": None, "output": 100.0}}
    with LlmServer(delay=0.05) as server:
        run(settings(store, concurrency=2, prices=prices), server, texts(10))
    assert any("s left" in line and "units" in line for line in caplog.messages)
    assert "test: 10/10 units, 10 requests" in caplog.messages[-1]
    assert "40 tokens, spent 0.0040" in caplog.messages[-1]
