"""What can go wrong between a request and its answer, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechatlas.explain.llm.requests import Request
from mechatlas.io import UserError

if TYPE_CHECKING:
    import openai

# Of the statuses that refuse a request as it is, these pass with time.
PASSING = (408, 409, 429)
# OpenAI says "too many requests" to an account without money as well, which no waiting mends.
HOPELESS_CODES = ("insufficient_quota", "billing_hard_limit_reached")
# Exceptions of httpx below the client's, when no byte of the request left; by name, as the client may use one of
# two distributions of that library.
UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
LONGEST_TEXT = 200


class Stopped(Exception):
    """The run is ending; nothing more is sent."""


class Transient(Exception):
    """An attempt failed in a way that may pass.

    Parameters
    ----------
    reason : str
    wait : float
        Seconds that the endpoint asks to wait.
    busy : bool
        It refused for load, which concerns every other request as well.
    maybe_billed : bool
        The request was sent and not refused, so it may have been paid for.
    response : str
        What came instead of an answer.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait: float = 0.0,
        busy: bool = False,
        maybe_billed: bool = False,
        response: str = "",
    ) -> None:
        super().__init__(reason)
        self.wait, self.busy, self.maybe_billed = wait, busy, maybe_billed
        self.response = response


class Fatal(UserError):
    """The endpoint refuses for a reason that no further attempt changes."""


class Unanswered(UserError):
    """A request got no answer in all its attempts."""


def explain_failure(error: openai.APIError, request: Request, key: str) -> Transient | Fatal:
    """Turn an exception of the client into what to do about it, with the key kept out of the text."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status(error, request, key)
    if isinstance(error, openai.APITimeoutError):
        return Transient("no answer in time", maybe_billed=not _unsent(error))
    reason = f"connection lost ({_one_line(str(error.__cause__ or error), key)})"
    return Transient(reason, maybe_billed=not _unsent(error))


def error_code(error: openai.APIStatusError) -> str | None:
    """Return the code that an OpenAI-compatible endpoint gives with a refusal."""
    body = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    code = inner.get("code") if isinstance(inner, Mapping) else None
    return code if isinstance(code, str) else None


def redact(text: str, key: str) -> str:
    """Return a text without the key."""
    return text.replace(key, "[key]") if key else text


def _status(error: openai.APIStatusError, request: Request, key: str) -> Transient | Fatal:
    status, endpoint = error.status_code, request.endpoint
    text = _one_line(_message(error), key)
    where = f"{endpoint.base_url} refused {endpoint.model}"
    if status in (401, 403):
        # The endpoint's own words are left out: they may hold the key, whole or in part.
        variable = endpoint.api_key_env or "api_key_env, which is null,"
        return Fatal(
            f"{where} ({status}): it does not accept the key of {variable}; set a valid one"
        )
    if status == 429 and error_code(error) in HOPELESS_CODES:
        return Fatal(f"{where} (429): the account has no credit left; top it up and run again")
    if status == 404:
        return Fatal(f"{where} (404: {text}); correct model or base_url of this endpoint")
    if status in PASSING or status >= 500:
        wait = retry_after(error.response.headers)
        return Transient(f"status {status} ({text})", wait=wait, busy=status in (429, 503))
    return Fatal(
        f"{where} ({status}: {text}); correct the parameters of this endpoint "
        f"(such as structured, temperature, token_limit_key), prompt {request.prompt_version}"
    )


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a response asks to wait: by retry-after-ms, or Retry-After as number or date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers.get(name, "")) / scale)
        except ValueError:
            continue
    return _seconds_until(headers.get("retry-after", ""))


def _seconds_until(date: str) -> float:
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _unsent(error: openai.APIError) -> bool:
    return type(error.__cause__).__name__ in UNSENT


def _message(error: openai.APIStatusError) -> str:
    body: Any = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    message = inner.get("message") if isinstance(inner, Mapping) else inner
    return str(message or error.response.reason_phrase)


def _one_line(text: str, key: str) -> str:
    line = " ".join(redact(text, key).split())
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 3] + "..."
