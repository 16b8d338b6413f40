"""What the configuration says about endpoints, budget and pace, as values that cannot change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mechatlas.io import UserError

MILLION = 1_000_000


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible address, and the parameters it is asked with.

    The fields are the keys of ``explain.openai`` and ``judge`` in the configuration, where they are described.
    ``provider`` is the name under which answers are stored; two addresses of one provider share them.
    """

    model: str
    base_url: str
    api_key_env: str | None
    provider: str
    structured: str
    temperature: float | None
    max_tokens: int
    token_limit_key: str
    extra_body: Mapping[str, Any] = field(hash=False)

    def api_key(self) -> str:
        """Return the key from its environment variable ("" for an endpoint that wants none).

        Raises
        ------
        UserError
            If the variable is unset or empty.
        """
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(
                f"the environment variable {self.api_key_env} is not set, but {self.base_url} needs a key for "
                f"{self.model}; export it, or name another one under api_key_env (null for no key)"
            )
        return key


@dataclass(frozen=True)
class Price:
    """Prices per million tokens, in the currency of the configuration."""

    input: float
    output: float
    cached_input: float | None = None

    def times(self, share: float) -> Price:
        """Return these prices times a share."""
        cached = None if self.cached_input is None else share * self.cached_input
        return Price(share * self.input, share * self.output, cached)

    def of(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """Return the price of a request; ``cached_tokens`` are a part of ``prompt_tokens``."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / (
            MILLION
        )


@dataclass(frozen=True)
class Budget:
    """Caps on what a store pays in all; None is no cap."""

    money: float | None = None
    tokens: int | None = None
    requests: int | None = None


@dataclass(frozen=True)
class LlmSettings:
    """The ``llm`` section of the configuration, where the keys are described."""

    mode: str
    store: Path
    batch: bool
    batch_poll_seconds: float
    batch_price: float
    concurrency: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeout: float
    retries: int
    breaker: int
    budget: Budget
    prices: Mapping[str, Price] = field(hash=False)


def endpoint_from(section: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint that ``explain.openai`` or ``judge`` of a completed configuration describes."""
    values = {f.name: section[f.name] for f in fields(Endpoint)}
    if values["provider"] is None:
        values["provider"] = urlsplit(section["base_url"]).hostname
    return Endpoint(**values)


def llm_settings_from(section: Mapping[str, Any]) -> LlmSettings:
    """Return the settings that the ``llm`` section of a completed configuration describes."""
    values = {f.name: section[f.name] for f in fields(LlmSettings)}
    values["store"] = Path(section["store"])
    values["budget"] = Budget(**section["budget"])
    values["prices"] = {model: Price(**price) for model, price in section["prices"].items()}
    return LlmSettings(**values)
