"""What would stop every request, found out before anything expensive runs."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechatlas.explain.llm.budget import require_price
from mechatlas.explain.llm.failures import explain_failure, redact
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.settings import Endpoint, LlmSettings, endpoint_from, llm_settings_from
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError

if TYPE_CHECKING:
    import openai

logger = logging.getLogger("mechatlas")

LONGEST_WAIT_SECONDS = 10.0
ATTEMPTS = 3


def used_endpoints(config: Mapping[str, Any]) -> Iterator[tuple[str, Endpoint]]:
    """Yield the endpoints that a completed configuration asks, with their keys in it."""
    if "openai" in config["explain"]["explainers"]:
        yield "explain.openai", endpoint_from(config["explain"]["openai"])
    if config["judge"]["scorers"]:
        yield "judge", endpoint_from(config["judge"])


def check_endpoints(config: Mapping[str, Any]) -> None:
    """Check that every endpoint that a completed configuration asks will answer; ask it for nothing that costs.

    Raises
    ------
    UserError
        In one sentence: a key that is not set or not accepted, an address that does not answer, a model that it does
        not have, a cap on money without a price, a store to replay that does not exist.
    """
    settings = llm_settings_from(config["llm"])
    endpoints = list(used_endpoints(config))
    if not endpoints:
        return
    if settings.mode == "replay":
        ResponseStore(settings.store, read_only=True).close()
        return
    for section, endpoint in endpoints:
        require_price(endpoint.model, settings.budget, settings.prices)
        try:
            endpoint.api_key()
        except UserError as error:
            raise UserError(f"{section}.api_key_env: {error}") from None
    checked: set[tuple[str, str | None, str]] = set()
    for section, endpoint in endpoints:
        what = (endpoint.base_url, endpoint.api_key_env, endpoint.model)
        if what not in checked:
            checked.add(what)
            _check(section, endpoint, settings)


def _check(section: str, endpoint: Endpoint, settings: LlmSettings) -> None:
    import openai

    key = endpoint.api_key()
    client = openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=key or "none",
        max_retries=ATTEMPTS - 1,
        timeout=min(settings.timeout, LONGEST_WAIT_SECONDS),
    )
    refusal = ""
    with client:
        try:
            known = [model.id for model in client.models.list()]
        except openai.NotFoundError:
            return  # not every endpoint has this page
        except openai.APIConnectionError as error:
            why = redact(str(error.__cause__ or error), key)
            refusal = (
                f"{section}.base_url: {endpoint.base_url} does not answer ({why}); "
                "correct it, start the server, or set llm.mode to replay"
            )
        except (ValueError, TypeError, AttributeError):
            refusal = (
                f"{section}.base_url: {endpoint.base_url} answers, but not as an OpenAI-compatible endpoint does; "
                "correct it (most end in /v1)"
            )
        except openai.APIStatusError as error:
            refusal = _refusal(section, error, endpoint, key)
        else:
            if endpoint.model not in known and not _is_served(client, endpoint.model):
                refusal = _unknown_model(section, endpoint, known)
    # Raised here, as an exception keeps what was being handled, and that text may hold the key.
    if refusal:
        raise UserError(refusal)


def _refusal(section: str, error: openai.APIStatusError, endpoint: Endpoint, key: str) -> str:
    if error.status_code in (401, 403):
        refusal = explain_failure(error, Request(endpoint, (), None, ""), key)
        return f"{section}.api_key_env: {refusal}"
    logger.warning(
        "%s could not be asked for its models (status %d)", endpoint.base_url, error.status_code
    )
    return ""


def _is_served(client: openai.OpenAI, model: str) -> bool:
    """Return whether an endpoint has a model that its list leaves out, as some do."""
    import openai

    if Path(model).is_dir():
        return True  # servers on this machine load a folder by its path, and may list what is in a cache only
    try:
        client.models.retrieve(model)
    except openai.APIError:
        return False
    return True


def _unknown_model(section: str, endpoint: Endpoint, known: list[str]) -> str:
    near = difflib.get_close_matches(endpoint.model, known, n=1, cutoff=0.0)
    hint = f"the nearest name is {near[0]}" if near else "it has none"
    return f"{section}.model: {endpoint.base_url} has no model {endpoint.model}; {hint}"
