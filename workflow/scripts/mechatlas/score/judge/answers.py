"""What a judge's replies say about the items that were asked for, item by item; nothing is ever taken as zero."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mechatlas.explain.llm.requests import Answer
from mechatlas.explain.replies import Reply, ReplyError, read_answer

MISSING, DUPLICATE, RANGE = "no answer", "answered twice", "value out of range"
CANARY = "a control item was answered wrongly"
COUNT = "wrong number of values"
NOT_A_NUMBER = "the answer is not a number"
NO_LOGPROBS = "the endpoint gives no log-probabilities; set judge.simulation to all_at_once"


class OneAnswer(Reply):
    """An answer to one item."""

    id: str
    value: int


class Answers(Reply):
    """The reply to a request with items."""

    answers: list[OneAnswer]


class Values(Reply):
    """The reply to a request for a value per element."""

    values: list[int]


@dataclass
class Reading:
    """What a reply says: values by id, reasons by id where there is none, and whether the control items came out right.

    ``retry`` is False where the model refused, so that asking again is of no use.
    """

    values: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    canaries_right: bool = False
    retry: bool = True


def read_items(
    answer: Answer, asked: Collection[str], canaries: Mapping[str, int], low: int, high: int
) -> Reading:
    """Read the reply to a request with items.

    Parameters
    ----------
    answer : Answer
    asked : collection of str
        Ids of the items; ids that were not asked for are passed over.
    canaries : mapping
        Right values of the control items by id.
    low, high : int
        The range of values.
    """
    try:
        given = read_answer(answer, Answers).answers
    except ReplyError as error:
        return Reading(reasons=dict.fromkeys(asked, error.reason), retry=error.retry)
    counts = Counter(one.id for one in given)
    found = {one.id: one.value for one in given if counts[one.id] == 1}
    if any(found.get(name) != value for name, value in canaries.items()):
        return Reading(reasons=dict.fromkeys(asked, CANARY))
    reading = Reading(canaries_right=True)
    for name in asked:
        if name not in found:
            reading.reasons[name] = DUPLICATE if counts[name] else MISSING
        elif not low <= found[name] <= high:
            reading.reasons[name] = RANGE
        else:
            reading.values[name] = found[name]
    return reading


def read_values(
    answer: Answer, count: int, canaries: Mapping[int, int], low: int, high: int
) -> tuple[list[int] | None, str, bool]:
    """Read the reply to a request for a value per element.

    Returns
    -------
    tuple
        The values in order without those of control elements, or None; the reason why there are none; whether asking
        again may help. One wrong value spoils all, as an offset would.
    """
    try:
        values = read_answer(answer, Values).values
    except ReplyError as error:
        return None, error.reason, error.retry
    if len(values) != count:
        return None, COUNT, True
    if any(values[place] != value for place, value in canaries.items()):
        return None, CANARY, True
    if not all(low <= value <= high for value in values):
        return None, RANGE, True
    return [v for place, v in enumerate(values) if place not in canaries], "", True


def expected_value(answer: Answer, high: int) -> float | None:
    """Return the mean of the numbers 0 .. ``high`` by their probabilities at the first position, or None.

    Probabilities of other tokens are left out and the rest is scaled to 1, as in Bills et al. 2023.
    """
    if not answer.logprobs:
        return None
    total = weighted = 0.0
    for token, logprob in answer.logprobs[0].items():
        text = token.strip()
        if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= high:
            share = math.exp(logprob)
            total += share
            weighted += share * int(text)
    return weighted / total if total > 0 else None
