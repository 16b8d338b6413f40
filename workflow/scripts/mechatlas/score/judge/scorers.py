"""Asking a judge about items: which go into a request, under which ids, and what becomes of the replies.

Every request mixes items in an order that depends on the unit and scorer only, gives them ids made for this request,
and holds `CANARIES` control items with different known answers, so that a judge that always says the same or that
confuses ids is found out. What is missing or cannot be read is asked for once more, in a new order under new ids; what
is missing then is unscored, with a reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechatlas.explain.excerpts import Example, UnitKind, pieces_to_json
from mechatlas.explain.llm.requests import Answer, Request, Usage
from mechatlas.explain.llm.settings import Endpoint, endpoint_from
from mechatlas.io import UserError, rng_for
from mechatlas.score.judge import prompts
from mechatlas.score.judge.answers import CANARY, Reading, read_items
from mechatlas.score.judge.items import TRIAL

Ask = Callable[[Request], Awaitable[Answer]]

LETTERS = "bcdfghjklmnpqrstvwxz"  # no vowels: ids are no words
CANARIES = 2
#: Tokens of an answer to one item, and of what surrounds them.
ANSWER_TOKENS, ANSWER_OVERHEAD = 14, 40


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how items are put to it (config: judge)."""

    endpoint: Endpoint
    items_per_request: int
    simulation: str
    seed: int

    @property
    def per_request(self) -> int:
        """Items per request, fewer than configured where the answer would not fit into max_tokens."""
        room = (self.endpoint.max_tokens - ANSWER_OVERHEAD) // ANSWER_TOKENS - CANARIES
        if room < 1:
            needed = ANSWER_OVERHEAD + ANSWER_TOKENS * (CANARIES + 1)
            raise UserError(
                f"judge.max_tokens: {self.endpoint.max_tokens} leaves no room for an answer; "
                f"it must be at least {needed}"
            )
        return min(self.items_per_request, room)


def judge_settings(section: Mapping[str, Any], seed: int) -> JudgeSettings:
    """Return the settings that the ``judge`` section of a completed configuration describes."""
    return JudgeSettings(
        endpoint_from(section), section["items_per_request"], section["simulation"], seed
    )


@dataclass(frozen=True)
class Subject:
    """An explanation to be judged.

    Attributes
    ----------
    unit, explainer, control : str
        ``unit`` is the unit whose items are asked about; with control "swapped" the text is another unit's.
    text : str
        Empty where there is no explanation, and ``reason`` says why.
    """

    unit: str
    explainer: str
    control: str
    text: str
    reason: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        """What tells this subject from all others."""
        return (self.unit, self.explainer, self.control)


@dataclass
class Judged:
    """The judge's answers about items.

    Attributes
    ----------
    values : dict
        By item.
    reasons : dict
        By item without a value.
    usage : Usage
    canary_failures : int
        Requests in which a control item was answered wrongly, the first attempts included.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    usage: Usage
    canary_failures: int = 0

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            self.values | other.values,
            self.reasons | other.reasons,
            self.usage + other.usage,
            self.canary_failures + other.canary_failures,
        )


@dataclass(frozen=True)
class Question:
    """What gets one answer: an item, or a trial of the intruder; ``content`` follows the id in the prompt."""

    name: str
    content: tuple[Any, ...]


NOTHING = Judged({}, {}, Usage())


def questions_of(scorer: str, items: pd.DataFrame) -> list[Question]:
    """Return the questions that items make up, in the order of the table."""
    if scorer != "intruder":
        rows = zip(items["item"], items["pieces"], strict=True)
        return [Question(name, tuple(prompts.pieces_of(pieces))) for name, pieces in rows]
    return [
        Question(str(group), tuple(prompts.pieces_of(pieces) for pieces in rows["pieces"]))
        for group, rows in items.groupby("group", sort=False)
    ]


async def judge_items(
    ask: Ask,
    settings: JudgeSettings,
    kind: UnitKind,
    subject: Subject,
    scorer: str,
    items: pd.DataFrame,
) -> Judged:
    """Judge the items of one unit and scorer (any but the simulation).

    Parameters
    ----------
    ask : callable
        As given by `mechatlas.explain.llm.client.run_units`.
    settings : JudgeSettings
    kind : UnitKind
    subject : Subject
        Must have a text.
    scorer : str
    items : data frame
        Rows of items.parquet of this unit and scorer.

    Returns
    -------
    Judged
        Values 0 to 10 by item; for the intruder 1 for the chosen item of a trial and 0 for its others.
    """
    questions = questions_of(scorer, items)
    batches = batches_of(settings, subject.unit, scorer, questions)
    parts = await asyncio.gather(
        *(
            _judge_batch(ask, settings, kind, subject, scorer, batch, f"{number}")
            for number, batch in enumerate(batches)
        )
    )
    judged = sum(parts, NOTHING)
    return _per_item(judged, items) if scorer == "intruder" else judged


def batches_of(
    settings: JudgeSettings, unit: str, scorer: str, questions: Sequence[Question]
) -> list[list[Question]]:
    """Mix questions and cut them into batches of equal size; the same for every explanation of a unit."""
    order = rng_for(settings.seed, "judge order", unit, scorer).permutation(len(questions))
    size = max(1, settings.per_request // (TRIAL if scorer == "intruder" else 1))
    count = max(1, -(-len(questions) // size))
    return [[questions[i] for i in order[start::count]] for start in range(count)]


async def _judge_batch(
    ask: Ask,
    settings: JudgeSettings,
    kind: UnitKind,
    subject: Subject,
    scorer: str,
    batch: Sequence[Question],
    number: str,
) -> Judged:
    judged = NOTHING
    left = list(batch)
    for attempt in ("first", "again"):
        sheet = make_sheet(settings, subject, scorer, left, number, attempt)
        answer = await ask(sheet_request(settings, kind, subject, scorer, sheet))
        reading = read_items(answer, sheet.names, sheet.canaries, *value_range(scorer))
        judged += _judged(sheet, reading, answer)
        left = [question for question in left if question.name not in judged.values]
        if not left or not reading.retry:
            break
    reasons = {name: why for name, why in judged.reasons.items() if name not in judged.values}
    return Judged(judged.values, reasons, judged.usage, judged.canary_failures)


def _judged(sheet: Sheet, reading: Reading, answer: Answer) -> Judged:
    values = {sheet.names[name]: float(value) for name, value in reading.values.items()}
    reasons = {sheet.names[name]: reason for name, reason in reading.reasons.items()}
    return Judged(values, reasons, answer.usage, int(CANARY in reading.reasons.values()))


@dataclass(frozen=True)
class Sheet:
    """The items of one request as they are put to the judge.

    Attributes
    ----------
    lines : list
        ``[id, piece, ...]``, control items among them.
    names : dict
        Question by id.
    canaries : dict
        Right value by id.
    """

    lines: list[list[Any]]
    names: dict[str, str]
    canaries: dict[str, int]


def value_range(scorer: str) -> tuple[int, int]:
    """Return the smallest and largest answer."""
    return (1, TRIAL) if scorer == "intruder" else (0, prompts.TOP)


def make_sheet(
    settings: JudgeSettings,
    subject: Subject,
    scorer: str,
    questions: Sequence[Question],
    *names: str,
) -> Sheet:
    """Give questions ids and an order of their own for one request, and mix control items in."""
    rng = rng_for(settings.seed, "judge request", *subject.names, scorer, *names)
    total = len(questions) + CANARIES
    codes = rng.choice(len(LETTERS) ** 2, total, replace=False)
    ids = [LETTERS[code // len(LETTERS)] + LETTERS[code % len(LETTERS)] for code in codes]
    low, high = value_range(scorer)
    checks = low + rng.choice(high - low + 1, CANARIES, replace=False)
    canaries = {ids[i]: int(checks[i]) for i in range(CANARIES)}
    lines: list[list[Any]] = [[name, {"check": value}] for name, value in canaries.items()]
    named = dict(zip(ids[CANARIES:], questions, strict=True))
    lines += [[name, *question.content] for name, question in named.items()]
    lines = [lines[i] for i in rng.permutation(total)]
    return Sheet(lines, {name: question.name for name, question in named.items()}, canaries)


def sheet_request(
    settings: JudgeSettings, kind: UnitKind, subject: Subject, scorer: str, sheet: Sheet
) -> Request:
    """Return the request that asks about a sheet."""
    return Request(
        settings.endpoint,
        prompts.item_messages(kind, scorer, subject.text, sheet.lines),
        prompts.ANSWERS_SCHEMA,
        prompts.PROMPT_VERSION,
    )


def _per_item(judged: Judged, items: pd.DataFrame) -> Judged:
    """Turn the chosen number of each trial into one value per item."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for group, rows in items.groupby("group", sort=False):
        names = rows["item"].tolist()
        if group in judged.values:
            chosen = int(judged.values[str(group)]) - 1
            values |= {name: float(i == chosen) for i, name in enumerate(names)}
        else:
            reasons |= dict.fromkeys(names, judged.reasons[str(group)])
    return Judged(values, reasons, judged.usage, judged.canary_failures)


def first_requests(
    settings: JudgeSettings, kind: UnitKind, subject: Subject, scorer: str, items: pd.DataFrame
) -> Iterator[Request]:
    """Yield the requests that judging items begins with, for forecasts and budgets (not the simulation)."""
    batches = batches_of(settings, subject.unit, scorer, questions_of(scorer, items))
    for number, batch in enumerate(batches):
        sheet = make_sheet(settings, subject, scorer, batch, f"{number}", "first")
        yield sheet_request(settings, kind, subject, scorer, sheet)


def fuzzing_rater(
    judge: Mapping[str, Any], kind: UnitKind, seed: int = 0
) -> Callable[[Ask, str, str, Sequence[Example]], Awaitable[tuple[list[float | None], Usage]]]:
    """Return a function that rates marked examples 0 to 10 for a text, as the fuzzing scorer does.

    It serves to choose among explanations of a unit on validation documents; see
    `mechatlas.explain.language`. None stands for an example that got no answer.
    """
    settings = judge_settings(judge, seed)

    async def rate(
        ask: Ask, unit: str, text: str, examples: Sequence[Example]
    ) -> tuple[list[float | None], Usage]:
        rows = [(str(i), pieces_to_json(example.pieces)) for i, example in enumerate(examples)]
        items = pd.DataFrame(rows, columns=["item", "pieces"])
        # The same text twice must be asked the same, and texts of different candidates under different ids.
        subject = Subject(unit, "candidate", text, text)
        judged = await judge_items(ask, settings, kind, subject, "fuzzing", items)
        return [judged.values.get(name) for name, _ in rows], judged.usage

    return rate
