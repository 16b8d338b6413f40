"""The protocol end to end: `transformers serve` with one of our embedded models, asked by our client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from llm_server import endpoint_config, llm_config
from llm_works import request, settings

from mechatlas.explain.llm.check import check_endpoints
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError

MODEL = Path(__file__).resolve().parents[2] / "resources" / "models" / "demo-2l"
# The conversation as running text, which is all that this model knows.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"transformers serve needs {', '.join(MISSING)}: pip install 'transformers[serving]'",
    ),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Serve the model; yield the address and the model's name there."""
    folder = tmp_path_factory.mktemp("served") / "demo-2l"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder.parent / "log"
    (folder.parent / "hub").mkdir()  # the cache whose models it lists
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent), "OMP_NUM_THREADS": "1"}
    with open(log, "w") as out:
        process = subprocess.Popen(
            [*command, "serve", str(folder), *options],
            env={**os.environ, **quiet},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(10)


def _wait(address: str, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 100
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"transformers serve did not start: {log.read_text()[-2000:]}")


def test_our_client_and_transformers_serve_understand_each_other(served, tmp_path):
    address, model = served
    given = settings(tmp_path / "responses.sqlite", timeout=60, concurrency=2)
    prompts = ["Ada went to the", "The cat and the", "Ada went to the"]
    known = {"model": model, "max_tokens": 8}

    async def unit(ask, prompt):
        answers = await asyncio.gather(*(ask(request(address, p, **known)) for p in prompt))
        return [(a.text, a.finish_reason, a.usage) for a in answers]

    works = [lambda ask: unit(ask, prompts), lambda ask: unit(ask, prompts[:1])]
    first, second = run_units(given, works, "served")
    texts = [text for text, *_ in first]
    assert all(texts)
    assert texts[0] == texts[2] != texts[1]
    assert second == first[:1]
    for _, finish, usage in first:
        assert finish in ("stop", "length")
        assert usage.completion_tokens <= 8
        assert 3 <= usage.prompt_tokens <= 12
    with ResponseStore(given.store) as store:
        assert len(store.keys()) == 2, "the same question is sent once"
    # Nothing is sent in replay: the address is not even one.
    offline = settings(given.store, mode="replay")
    assert run_units(offline, works, "served") == [first, second]


def test_the_answers_are_those_of_the_model(served, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    address, model = served
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    prompt = "Ada went to the"
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    wanted = network.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]

    async def work(ask):
        return (await ask(request(address, prompt, model=model, max_tokens=8))).text

    given = settings(tmp_path / "responses.sqlite", timeout=60)
    (text,) = run_units(given, [work], "served")
    assert text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_the_check_before_a_run_knows_its_models(served, tmp_path):
    address, model = served
    config = {
        "explain": {"explainers": ["openai"], "openai": endpoint_config(address, model=model)},
        "judge": {"scorers": []},
        "llm": llm_config(tmp_path / "responses.sqlite"),
    }
    check_endpoints(config)
    config["explain"]["openai"]["model"] = "gpt-4o-mini"
    with pytest.raises(UserError, match="has no model gpt-4o-mini"):
        check_endpoints(config)
