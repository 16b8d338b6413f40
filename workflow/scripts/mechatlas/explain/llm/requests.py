"""A question to a model as a value with a key of its own, and the answer to it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mechatlas.explain.llm.settings import Endpoint, Price

# What chat templates add: a role and separators to each message, an opening of the answer.
TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST = 4, 3
# Words with the blank before them, numbers, runs of blanks, runs of signs: the first cut of byte-level BPE.
PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]+|\s+| ?[!-/:-@\[-`{-~]+|[^\x00-\x7f]+|.", re.DOTALL)
LETTERS_PER_TOKEN, DIGITS_PER_TOKEN, SIGNS_PER_TOKEN, BYTES_PER_TOKEN = 8, 3, 2, 2


@dataclass(frozen=True, eq=False)
class Request:
    """One chat completion to be asked for.

    Parameters
    ----------
    endpoint : Endpoint
    messages : tuple of mapping
        Each with ``role`` and ``content``. What many requests share comes first, for the provider's prompt cache.
    schema : mapping, optional
        JSON schema of the answer. The endpoint is held to it as far as ``endpoint.structured`` says.
    prompt_version : str
        Name of the prompt's wording; also the name of the schema.
    sample : int
        Tells apart several answers to the same question.
    top_logprobs : int, optional
        Ask for this many log-probabilities at each position of the answer.
    max_tokens : int, optional
        Most tokens of the answer; None takes that of the endpoint.
    """

    endpoint: Endpoint
    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any] | None
    prompt_version: str
    sample: int = 0
    top_logprobs: int | None = None
    max_tokens: int | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 (hexadecimal) of all that decides the answer: what is sent, to which provider, which sample.

        Left out are the address and the key variable, which may change while the provider stays the same.
        """
        # Keys keep their order: in a schema it is the order in which the model writes.
        content = [self.endpoint.provider, self.prompt_version, self.sample, self.body()]
        return hashlib.sha256(_canonical(content).encode()).hexdigest()

    @property
    def answer_limit(self) -> int:
        """Most tokens that the answer can have."""
        return self.max_tokens if self.max_tokens is not None else self.endpoint.max_tokens

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the request, in OpenAI's form."""
        endpoint = self.endpoint
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [dict(message) for message in self.messages],
            endpoint.token_limit_key: self.answer_limit,
        }
        if endpoint.temperature is not None:
            body["temperature"] = endpoint.temperature
        if self.top_logprobs is not None:
            body.update(logprobs=True, top_logprobs=self.top_logprobs)
        if self.schema is not None and endpoint.structured == "json_schema":
            name = re.sub(r"[^A-Za-z0-9_-]", "_", self.prompt_version)[:64]
            form = {"name": name, "strict": True, "schema": dict(self.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self.schema is not None and endpoint.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return {**body, **dict(sorted(endpoint.extra_body.items()))}


@dataclass(frozen=True)
class Usage:
    """What answers took. ``price`` is None as soon as the price of one of them is unknown."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    price: float | None = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and answer tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        unknown = self.price is None or other.price is None
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            None if unknown else self.price + other.price,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    ``finish_reason`` is the provider's ("stop", "length", ...), or "refusal" or "content_filter" with an empty text.
    ``logprobs`` has a mapping {token: log-probability} for each position of the answer, or is None.
    ``usage`` is what the answer took when it was paid for; an answer from the store costs nothing again.
    """

    key: str
    text: str
    finish_reason: str
    logprobs: Sequence[Mapping[str, float]] | None
    usage: Usage = field(default_factory=Usage)


class UnusableAnswer(ValueError):
    """A response that is not a chat completion."""


def read_answer(key: str, response: str, usage: Usage) -> Answer:
    """Read the JSON text of a response.

    Raises
    ------
    UnusableAnswer
        If it is not JSON or lacks what every chat completion has.
    """
    try:
        whole = json.loads(response)
        if is_content_filter(whole):
            return Answer(key, "", "content_filter", None, usage)
        choice = whole["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason") or "stop"
        text, refusal = message.get("content") or "", message.get("refusal")
        positions = (choice.get("logprobs") or {}).get("content")
        logprobs = None if positions is None else [_logprobs(entry) for entry in positions]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnusableAnswer(f"not a chat completion: {response[:80]!r}") from error
    if not isinstance(text, str):
        raise UnusableAnswer(f"the answer is not text: {text!r:.80}")
    if refusal or finish == "content_filter":
        return Answer(key, "", "refusal" if refusal else finish, None, usage)
    return Answer(key, text, finish, logprobs, usage)


def is_content_filter(whole: Any) -> bool:
    """Return whether a parsed response is a provider's refusal to let the prompt through (Azure's form)."""
    error = whole.get("error") if isinstance(whole, Mapping) else None
    return isinstance(error, Mapping) and error.get("code") == "content_filter"


def read_usage(response: str, price: Price | None, estimate: Callable[[], int]) -> Usage:
    """Return what a response says it took.

    An endpoint that does not count tokens gets estimates: ``estimate()`` for the prompt. This reads anything
    without an error, as it runs before the response is stored.
    """
    try:
        whole = json.loads(response)
    except ValueError:
        whole = None
    if not isinstance(whole, Mapping):
        whole = {}
    if is_content_filter(whole):
        return Usage(1)
    counts = whole.get("usage")
    counts = counts if isinstance(counts, Mapping) else {}
    prompt, answer = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    prompt = estimate() if prompt is None else prompt
    answer = estimate_text(str(whole.get("choices", ""))) if answer is None else answer
    details = counts.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    cached = min(cached or 0, prompt)
    return Usage(
        1, prompt, cached, answer, None if price is None else price.of(prompt, cached, answer)
    )


def estimate_tokens(request: Request) -> int:
    """Estimate the prompt's tokens, the schema's included, without a tokenizer (see `estimate_text`)."""
    overhead = TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE * len(request.messages)
    return overhead + sum(estimate_text(text) for text in _texts(request))


def bound_tokens(request: Request) -> int:
    """Return a number of prompt tokens that no byte-level tokenizer exceeds: that of the UTF-8 bytes.

    Budgets reserve it, so that a cap holds whatever the estimate misses.
    """
    overhead = TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE * len(request.messages)
    return overhead + sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(request))


def estimate_text(text: str) -> int:
    """Estimate the tokens of a text, as byte-level BPE with a large vocabulary would make them.

    The text is cut as such tokenizers cut it first; a word counts a token for every eight letters begun, a number
    for every three digits, signs for every two, blanks one, everything else for every two of its UTF-8 bytes.
    """
    return sum(map(_piece_tokens, PIECES.findall(text)))


def _piece_tokens(piece: str) -> int:
    kind = piece[-1]
    if kind.isspace():
        return 1
    if not kind.isascii():
        return math.ceil(len(piece.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)
    length = len(piece.lstrip())
    if kind.isalpha():
        return math.ceil(length / LETTERS_PER_TOKEN)
    return math.ceil(length / (DIGITS_PER_TOKEN if kind.isdigit() else SIGNS_PER_TOKEN))


def _texts(request: Request) -> list[str]:
    texts = [text for message in request.messages for text in message.values()]
    form = request.body().get("response_format")
    return [*texts, _canonical(form)] if form and "json_schema" in form else texts


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _logprobs(entry: Mapping[str, Any]) -> dict[str, float]:
    tops = {top["token"]: float(top["logprob"]) for top in reversed(entry["top_logprobs"] or [])}
    return tops or {entry["token"]: float(entry["logprob"])}


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
