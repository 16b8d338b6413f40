"""Simulation: a judge predicts activity token by token (Bills et al. 2023), all at once or from log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pandas as pd

from mechatlas.explain.excerpts import UnitKind
from mechatlas.explain.llm.requests import Request, Usage
from mechatlas.io import rng_for
from mechatlas.score.judge import prompts
from mechatlas.score.judge.answers import (
    CANARY,
    NO_LOGPROBS,
    NOT_A_NUMBER,
    expected_value,
    read_values,
)
from mechatlas.score.judge.scorers import (
    CANARIES,
    NOTHING,
    Ask,
    Judged,
    JudgeSettings,
    Subject,
)

#: Log-probabilities asked for; the eleven numbers and some room. OpenAI gives at most 20.
TOP_LOGPROBS = 20


async def simulate(
    ask: Ask, settings: JudgeSettings, kind: UnitKind, subject: Subject, items: pd.DataFrame
) -> Judged:
    """Let the judge predict the strength of every item (token) of every stretch of text.

    Parameters
    ----------
    ask, settings, kind, subject
        See `mechatlas.score.judge.scorers.judge_items`.
    items : data frame
        Rows of items.parquet of this unit and the scorer "simulation"; a group is a stretch of text in order.
    """
    one = _per_token if settings.simulation == "logprobs" else _all_at_once
    groups = [(str(group), rows) for group, rows in items.groupby("group", sort=False)]
    parts = await asyncio.gather(
        *(one(ask, settings, kind, subject, group, rows) for group, rows in groups)
    )
    return sum(parts, NOTHING)


def tokens_of(rows: pd.DataFrame) -> list[str]:
    """Return the tokens of a stretch of text."""
    return [prompts.pieces_of(pieces)[0] for pieces in rows["pieces"]]


def _with_canaries(
    settings: JudgeSettings, subject: Subject, tokens: list[str], *names: str
) -> tuple[list[Any], dict[int, int]]:
    """Put control elements among tokens, never last; return the list and the right values by place."""
    rng = rng_for(settings.seed, "judge stretch", *subject.names, *names)
    total = len(tokens) + CANARIES
    # The last element is the query of a head.
    places = sorted(rng.choice(total - 1, CANARIES, replace=False).tolist())
    # Zero is what most tokens get, so it would prove nothing.
    checks = 1 + rng.choice(prompts.TOP, CANARIES, replace=False)
    canaries = {place: int(check) for place, check in zip(places, checks, strict=True)}
    rest = iter(tokens)
    return [{"check": canaries[i]} if i in canaries else next(rest) for i in range(total)], canaries


def _whole_request(
    settings: JudgeSettings, kind: UnitKind, subject: Subject, elements: list[Any]
) -> Request:
    return Request(
        settings.endpoint,
        prompts.whole_messages(kind, subject.text, elements),
        prompts.VALUES_SCHEMA,
        prompts.PROMPT_VERSION,
    )


async def _all_at_once(
    ask: Ask,
    settings: JudgeSettings,
    kind: UnitKind,
    subject: Subject,
    group: str,
    rows: pd.DataFrame,
) -> Judged:
    names, tokens = rows["item"].tolist(), tokens_of(rows)
    usage, wrong, reason = Usage(), 0, ""
    for attempt in ("first", "again"):
        elements, canaries = _with_canaries(settings, subject, tokens, group, attempt)
        answer = await ask(_whole_request(settings, kind, subject, elements))
        usage += answer.usage
        values, reason, retry = read_values(answer, len(elements), canaries, 0, prompts.TOP)
        wrong += reason == CANARY
        if values is not None:
            found = {name: float(value) for name, value in zip(names, values, strict=True)}
            return Judged(found, {}, usage, wrong)
        if not retry:
            break
    return Judged({}, dict.fromkeys(names, reason), usage, wrong)


async def _per_token(
    ask: Ask,
    settings: JudgeSettings,
    kind: UnitKind,
    subject: Subject,
    group: str,
    rows: pd.DataFrame,
) -> Judged:
    """Ask for each token apart; control elements are asked about like tokens, and spoil the stretch if wrong."""
    names, tokens = rows["item"].tolist(), tokens_of(rows)
    elements, canaries = _with_canaries(settings, subject, tokens, group)
    requests = _single_requests(settings, kind, subject, elements)
    answers = await asyncio.gather(*(ask(request) for request in requests))
    usage = sum((answer.usage for answer in answers), Usage())
    values = [expected_value(answer, prompts.TOP) for answer in answers]
    if all(answer.logprobs is None for answer in answers):
        return Judged({}, dict.fromkeys(names, NO_LOGPROBS), usage)
    wrong = [i for i, check in canaries.items() if not _near(values[i], check)]
    if wrong:
        return Judged({}, dict.fromkeys(names, CANARY), usage, 1)
    kept = [value for i, value in enumerate(values) if i not in canaries]
    found = {name: v for name, v in zip(names, kept, strict=True) if v is not None}
    return Judged(found, {n: NOT_A_NUMBER for n in names if n not in found}, usage)


def _near(value: float | None, check: int) -> bool:
    return value is not None and abs(value - check) <= 0.5


def _single_requests(
    settings: JudgeSettings, kind: UnitKind, subject: Subject, elements: list[Any]
) -> list[Request]:
    return [
        Request(
            settings.endpoint,
            prompts.single_messages(kind, subject.text, elements, number, element),
            None,
            prompts.PROMPT_VERSION,
            top_logprobs=TOP_LOGPROBS,
            max_tokens=1,
        )
        for number, element in enumerate(elements, 1)
    ]


def first_simulation_requests(
    settings: JudgeSettings, kind: UnitKind, subject: Subject, items: pd.DataFrame
) -> Iterator[Request]:
    """Yield the requests that a simulation begins with, for forecasts and budgets."""
    for group, rows in items.groupby("group", sort=False):
        if settings.simulation == "logprobs":
            elements, _ = _with_canaries(settings, subject, tokens_of(rows), str(group))
            yield from _single_requests(settings, kind, subject, elements)
        else:
            names = (str(group), "first")
            elements, _ = _with_canaries(settings, subject, tokens_of(rows), *names)
            yield _whole_request(settings, kind, subject, elements)
