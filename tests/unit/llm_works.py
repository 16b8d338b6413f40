"""Works and settings that the tests of the language model client share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_server import LlmServer, endpoint_config, llm_config

from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.settings import LlmSettings, endpoint_from, llm_settings_from

PRICES = {"scripted": {"input": 1.0, "cached_input": 0.5, "output": 4.0}}


def settings(store: Path, **changes: Any) -> LlmSettings:
    """Return settings with short waits; ``changes`` are keys of the configuration's ``llm``."""
    changes = {"timeout": 5, "retries": 3, "batch_poll_seconds": 0.05, **changes}
    if "budget" in changes:
        changes["budget"] = {"money": None, "tokens": None, "requests": None, **changes["budget"]}
    return llm_settings_from(llm_config(store, **changes))


def request(server: LlmServer | str, text: str, **changes: Any) -> Request:
    """Return a request; ``changes`` are keys of the configuration of an endpoint."""
    endpoint = endpoint_from(endpoint_config(server, **changes))
    return Request(endpoint, ({"role": "user", "content": text},), None, "test.1")


def asking(made: Request) -> Callable[..., Any]:
    """Return a work that asks one request and returns the answer's text."""

    async def work(ask: Any) -> str:
        return (await ask(made)).text

    return work


def run(given: LlmSettings, server: LlmServer | str, texts: list[str], **changes: Any) -> list[str]:
    """Ask one request for each text; return the answers."""
    return run_units(given, [asking(request(server, text, **changes)) for text in texts], "test")


def texts(count: int) -> list[str]:
    """Return different texts to ask about."""
    return [f"text {number}" for number in range(count)]
