"""Checks before anything expensive runs, and the forecast."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
from llm_server import Fault, LlmServer, Reply, completion, endpoint_config, failure, llm_config
from llm_works import PRICES, request, settings, texts

from mechatlas.explain.llm.check import check_endpoints
from mechatlas.explain.llm.forecast import tabulate
from mechatlas.explain.llm.requests import Usage, estimate_tokens
from mechatlas.explain.llm.settings import Price
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError


def config(server, tmp_path, *, judge=None, llm=None, explainers=("openai",), **endpoint):
    return {
        "explain": {
            "explainers": list(explainers),
            "openai": endpoint_config(server, **endpoint),
        },
        "judge": {**endpoint_config(server), "scorers": [], **(judge or {})},
        "llm": llm_config(tmp_path / "responses.sqlite", **(llm or {})),
    }


def refusal(given) -> str:
    with pytest.raises(UserError) as caught:
        check_endpoints(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_configuration_passes_and_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-right")
    with LlmServer(models=("scripted", "judge-model"), key="sk-right") as server:
        judge = {"scorers": ["detection"], "model": "judge-model", "api_key_env": "SOME_KEY"}
        check_endpoints(config(server, tmp_path, judge=judge, api_key_env="SOME_KEY"))
        assert {call.path for call in server.calls} == {"/v1/models"}
        assert not (tmp_path / "responses.sqlite").exists()


def test_nothing_is_checked_that_is_not_used(tmp_path):
    check_endpoints(config("http://127.0.0.1:1/v1", tmp_path, explainers=("programs",)))


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_key_that_is_not_set_is_named_without_a_request(tmp_path, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("SOME_KEY", raising=False)
    else:
        monkeypatch.setenv("SOME_KEY", value)
    with LlmServer() as server:
        judge = {"scorers": ["fuzzing"], "api_key_env": "SOME_KEY"}
        text = refusal(config(server, tmp_path, judge=judge, explainers=("programs",)))
        assert text.startswith("judge.api_key_env:")
        assert "SOME_KEY is not set" in text
        assert server.calls == []


def test_a_refused_key_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-wrong-0123")
    with LlmServer(key="sk-right") as server:
        text = refusal(config(server, tmp_path, api_key_env="SOME_KEY"))
    assert text.startswith("explain.openai.api_key_env:")
    assert "SOME_KEY" in text
    assert "sk-wrong" not in text


def test_an_endpoint_that_does_not_answer(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    text = refusal(config(address, tmp_path))
    assert f"explain.openai.base_url: {address} does not answer" in text


def test_an_unknown_model_brings_the_nearest_name(tmp_path):
    with LlmServer(models=("gpt-4o", "gpt-4o-mini", "o3")) as server:
        text = refusal(config(server, tmp_path, model="gpt-4o-mni"))
    assert "explain.openai.model" in text
    assert "has no model gpt-4o-mni; the nearest name is gpt-4o-mini" in text


def test_an_endpoint_without_a_list_of_models_passes(tmp_path):
    with LlmServer(models=None) as server:
        check_endpoints(config(server, tmp_path, model="whatever"))


def test_an_endpoint_in_trouble_is_left_to_the_run(tmp_path, caplog):
    with LlmServer() as server:
        server._page = lambda call: failure(500, "broken")
        check_endpoints(config(server, tmp_path))
    assert "status 500" in caplog.text


@pytest.mark.parametrize("body", [b"<html>a captive portal</html>", b"[1]", b'{"data": [1]}'])
def test_an_address_of_something_else(tmp_path, body):
    with LlmServer() as server:
        server._page = lambda call: Fault(200, body)
        assert "not as an OpenAI-compatible endpoint" in refusal(config(server, tmp_path))


def test_a_money_cap_needs_prices(tmp_path):
    llm = {"budget": {"money": 1.0, "tokens": None, "requests": None}}
    with LlmServer() as server:
        assert "llm.prices has no price of scripted" in refusal(config(server, tmp_path, llm=llm))
        check_endpoints(config(server, tmp_path, llm={**llm, "prices": PRICES}))


def test_replay_needs_its_store_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    given = config(
        "http://127.0.0.1:1/v1", tmp_path, llm={"mode": "replay"}, api_key_env="SOME_KEY"
    )
    assert "no response store" in refusal(given)
    ResponseStore(tmp_path / "responses.sqlite").close()
    check_endpoints(given)


def test_the_check_imports_nothing_heavy():
    code = (
        "import sys, mechatlas.explain.llm.check, mechatlas.explain.llm.forecast\n"
        "print([m for m in ('openai', 'torch', 'numpy', 'tenacity') if m in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['numpy']")
    assert time.monotonic() - start < 5


def test_the_forecast_counts_once_and_knows_the_store(tmp_path):
    path = tmp_path / "responses.sqlite"
    asked = [request("http://127.0.0.1:1/v1", text, max_tokens=100) for text in texts(10)]
    other = request("http://127.0.0.1:1/v1", "question", model="other")
    given = settings(path, prices=PRICES)
    pairs = [*(("explain", made) for made in [*asked, asked[0]]), ("judge", other)]

    first = tabulate(pairs, given)
    row, unknown = first.rows
    prompt = sum(estimate_tokens(made) for made in asked)
    assert (row.stage, row.model, row.requests, row.stored) == ("explain", "scripted", 10, 0)
    assert (row.prompt_tokens, row.answer_tokens, row.most_answer_tokens) == (prompt, 1000, 1000)
    assert row.price == pytest.approx(Price(**PRICES["scripted"]).of(prompt, 0, 1000))
    assert unknown.price is None
    assert first.to_dict()["price"] is None
    assert not path.exists()

    with ResponseStore(path) as store:
        for made in asked[:4]:
            response = json.dumps(completion(made.body(), Reply("x")))
            store.put(made, response, Usage(1, 9, 0, 20, 0.1))
    second = tabulate(pairs, given).rows[0]
    assert (second.requests, second.stored) == (6, 4)
    assert (second.answer_tokens, second.most_answer_tokens) == (120, 600)
    batched = tabulate(pairs, settings(path, prices=PRICES, batch=True, batch_price=0.25)).rows[0]
    assert batched.most_price == pytest.approx(0.25 * second.most_price)
    lines = tabulate(pairs, given).table().splitlines()
    assert lines[0].startswith("stage")
    assert lines[0].endswith("price at most")
    assert lines[2].split()[-2:] == ["unknown", "unknown"]
    assert lines[-1].split()[:3] == ["total", "7", "4"]
    assert len({len(line) for line in lines}) == 1
