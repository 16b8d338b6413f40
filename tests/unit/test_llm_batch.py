"""The Batch API against the scripted server."""

from __future__ import annotations

import asyncio
import json

import pytest
from llm_server import SERVER_ERROR, Call, Fault, LlmServer, echo
from llm_works import PRICES, request, run, settings, texts

from mechatlas.explain.llm import journal
from mechatlas.explain.llm.budget import BudgetReached
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError


@pytest.fixture
def store(tmp_path):
    return tmp_path / "responses.sqlite"


def test_all_requests_of_a_round_go_out_as_one_batch(store):
    async def unit(ask, server, name):
        parts = await asyncio.gather(*(ask(request(server, f"{name}.{n}")) for n in range(3)))
        return (await ask(request(server, "+".join(part.text for part in parts)))).text

    with LlmServer(lambda call: echo(call).upper()) as server:
        works = [lambda ask, n=n: unit(ask, server, n) for n in texts(20)]
        results = run_units(settings(store, batch=True), works, "units")
        assert len(server.batches) == 2, "three questions of each unit, then one more of each"
        assert [
            len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()
        ] == [60, 20]
        single = run_units(settings(store.with_name("single.sqlite")), works, "units")
        assert results == single
        assert run_units(settings(store, batch=True), works, "units") == results
        assert len(server.batches) == 2


def test_models_and_large_rounds_are_split(store, monkeypatch):
    monkeypatch.setattr(journal, "MOST_REQUESTS", 8)
    with LlmServer(models=("scripted", "other")) as server:
        works = [
            lambda ask, n=n, m=m: _text(ask, request(server, n, model=m))
            for m in ("scripted", "other")
            for n in texts(10)
        ]
        assert run_units(settings(store, batch=True), works, "units") == texts(10) * 2
        sizes = [
            len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()
        ]
        assert sorted(sizes) == [2, 2, 8, 8]
    monkeypatch.setattr(journal, "MOST_BYTES", 1000)
    with LlmServer() as server:
        given = settings(store.with_name("small.sqlite"), batch=True)
        assert run(given, server, texts(6)) == texts(6)
        sizes = [len(server.files[b["input_file_id"]]) for b in server.batches.values()]
        assert len(sizes) > 1
        assert max(sizes) <= 1000


def test_separators_within_an_answer_do_not_cut_it(store):
    odd = "line\u2028separator \u0085 next \x0b tab \u2029 end"
    with LlmServer() as server:
        finish = server._finish_batch

        def plainly(done):
            finish(done)
            name = done["output_file_id"]
            lines = [json.loads(line) for line in server.files[name].splitlines()]
            text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
            server.files[name] = text.encode()

        server._finish_batch = plainly
        assert run(settings(store, batch=True), server, [odd, "plain"]) == [odd, "plain"]


async def _text(ask, made):
    return (await ask(made)).text


def test_requests_that_fail_in_a_batch_are_asked_in_the_next_run(store):
    def answer(call: Call) -> str | Fault:
        return SERVER_ERROR if call.body["messages"][0]["content"] in texts(3) else echo(call)

    with LlmServer(answer) as server:
        given = settings(store, batch=True)
        with pytest.raises(UserError, match=r"3 requests stayed.*something broke.*run again"):
            run(given, server, texts(10))
        server.answer = echo
        assert run(given, server, texts(10)) == texts(10)
        assert server.repeated() == []
        assert len(server.chats()) == 13
    with ResponseStore(store) as kept:
        assert next(kept.rows("SELECT count(*) FROM reservations"))[0] == 0


def test_a_batch_that_ends_early_keeps_what_it_has(store):
    with LlmServer() as server:
        finish = server._finish_batch

        def expire(done):
            finish(done)
            name = done["output_file_id"]
            server.files[name] = b"\n".join(server.files[name].splitlines()[:4]) + b"\n"
            done["status"] = "expired"

        server._finish_batch = expire
        with pytest.raises(UserError, match="6 requests stayed.*is expired"):
            run(settings(store, batch=True), server, texts(10))
        server._finish_batch = finish
        assert run(settings(store, batch=True), server, texts(10)) == texts(10)
        assert len(server.files[server.batches["batch_1"]["input_file_id"]].splitlines()) == 6


def test_a_refused_batch_says_why(store):
    with LlmServer() as server:

        def refuse(done):
            done["status"] = "failed"
            done["errors"] = {
                "object": "list",
                "data": [{"code": "x", "message": "Enqueued token limit"}],
            }

        server._finish_batch = refuse
        with pytest.raises(UserError, match="batch_0 was refused: Enqueued token limit"):
            run(settings(store, batch=True), server, texts(3))
    with ResponseStore(store) as kept:
        assert next(kept.rows("SELECT count(*) FROM reservations"))[0] == 0


def test_budgets_hold_for_batches(store):
    with LlmServer() as server:
        given = settings(store, batch=True, budget={"requests": 7}, prices=PRICES)
        with pytest.raises(BudgetReached, match=r"requests is 7"):
            run(given, server, texts(10))
        assert len(server.answered()) == 7
        raised = settings(store, batch=True, budget={"requests": 10}, prices=PRICES)
        assert run(raised, server, texts(10)) == texts(10)
        assert server.repeated() == []
    with ResponseStore(store) as kept:
        # Two tokens of prompt and two of answer each, at half the price.
        price = next(kept.rows("SELECT sum(price) FROM answers"))[0]
        assert price == pytest.approx(10 * 0.5 * (2 * 1.0 + 2 * 4.0) / 1e6)


def test_a_refused_key_ends_a_batch_run(store, monkeypatch):
    monkeypatch.setenv("MARKED_KEY", "sk-wrong-0123")
    with LlmServer(key="right") as server, pytest.raises(UserError, match="MARKED_KEY") as caught:
        run(settings(store, batch=True), server, texts(3), api_key_env="MARKED_KEY")
    assert "sk-wrong" not in str(caught.value)


def test_a_batch_that_is_gone_is_asked_again_and_counts_as_spent(store):
    with LlmServer(batch_polls=10**9) as server:
        with pytest.raises(RuntimeError, match="a bug"):
            run_units(
                settings(store, batch=True), [_once_submitted(server), *_works(server)], "units"
            )
        server.batches.clear()
        server.batch_polls = 0
        assert run(settings(store, batch=True), server, texts(3)) == texts(3)
    with ResponseStore(store) as kept:
        assert next(kept.rows("SELECT count(*) FROM reservations WHERE state = 'lost'"))[0] == 3


def _works(server):
    return [lambda ask, n=n: _text(ask, request(server, n)) for n in texts(3)]


def _once_submitted(server):
    async def work(ask):
        while not server.polls:
            await asyncio.sleep(0.01)
        raise RuntimeError("a bug")

    return work
