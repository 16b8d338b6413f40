"""Questions whose answers may be several tokens: sums, number sequences, and word problems about dates.

They are for exact match of what a model generates, with and without a circuit's heads; a task, whose answer is one
token, is something else. The kinds are those of the experiments with removed heads of Lan, Torr and Barez (2023, arXiv
2311.04131), in words of our own.
"""

from __future__ import annotations

import datetime
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mechatlas.corpus.lexicon import MONTHS
from mechatlas.corpus.templates import Pieces
from mechatlas.io import UserError, rng_for
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.tasks.build import PromptBuilder

YEAR = 2023  # any that is no leap year
LAST_DAY = 28  # that all its months have
#: One of these follows the number of a day.
ENDINGS = {1: "st", 2: "nd", 3: "rd"}


class QuestionKind(Protocol):
    """All questions of a kind, by number."""

    @property
    def size(self) -> int:
        """How many different ones there are."""

    def question(self, index: int) -> tuple[Pieces, str]:
        """Return one: the pieces of its prompt, and its answer with the blank before it."""


@dataclass(frozen=True)
class Arithmetic:
    """``7 + 5 =`` or ``7 - 5 =``, the larger number first; no number begins with 0.

    Attributes
    ----------
    operation : {"addition", "subtraction"}
    digits : int
        Of both numbers, 1 to 3.
    """

    operation: str = "addition"
    digits: int = 1

    @property
    def size(self) -> int:
        count = self._count
        return count**2 if self.operation == "addition" else count * (count + 1) // 2

    def question(self, index: int) -> tuple[Pieces, str]:
        least = 10 ** (self.digits - 1)
        if self.operation == "addition":
            one, two = (least + x for x in divmod(index, self._count))
            return [(f" {one}", ""), (" +", ""), (f" {two}", ""), (" =", "")], f" {one + two}"
        # Row after row of a triangle.
        row = (math.isqrt(8 * index + 1) - 1) // 2
        one, two = least + row, least + index - row * (row + 1) // 2
        return [(f" {one}", ""), (" -", ""), (f" {two}", ""), (" =", "")], f" {one - two}"

    @property
    def _count(self) -> int:
        return 9 * 10 ** (self.digits - 1)


@dataclass(frozen=True)
class Steps:
    """``3 13 23``: the next number of a sequence.

    Attributes
    ----------
    step : int
        From one number to the next.
    shown : int
        Numbers that are shown.
    highest : int
        The first number is at most this.
    """

    step: int = 1
    shown: int = 3
    highest: int = 99

    @property
    def size(self) -> int:
        return self.highest

    def question(self, index: int) -> tuple[Pieces, str]:
        *shown, answer = (index + 1 + self.step * i for i in range(self.shown + 1))
        return [(f" {number}", "") for number in shown], f" {answer}"


@dataclass(frozen=True)
class MonthsLater:
    """Which month it is so many months after another one.

    Attributes
    ----------
    most : int
        Months that pass at most.
    """

    most: int = 11

    @property
    def size(self) -> int:
        return len(MONTHS) * (self.most - 1)

    def question(self, index: int) -> tuple[Pieces, str]:
        months, start = divmod(index, len(MONTHS))
        months += 2  # so that the word is always "months"
        pieces = [
            (" If this month is", ""), (f" {MONTHS[start]}", ""), (", and", ""), (f" {months}", ""),
            (" months pass, then the month is", ""),
        ]  # fmt: skip
        return pieces, f" {MONTHS[(start + months) % len(MONTHS)]}"


@dataclass(frozen=True)
class DaysLater:
    """Which date it is so many days after another one, in a year of 365 days.

    Attributes
    ----------
    most : int
        Days that pass at most.
    """

    most: int = 30

    @property
    def size(self) -> int:
        return len(MONTHS) * LAST_DAY * (self.most - 1)

    def question(self, index: int) -> tuple[Pieces, str]:
        rest, start = divmod(index, len(MONTHS))
        days, day = divmod(rest, LAST_DAY)
        days += 2
        today = datetime.date(YEAR, start + 1, day + 1)
        pieces = [
            (" If today is", ""), *_date(today), (", then in", ""), (f" {days}", ""),
            (" days it is", ""),
        ]  # fmt: skip
        return pieces, "".join(text for text, _ in _date(today + datetime.timedelta(days)))


KINDS: dict[str, type[QuestionKind]] = {
    "arithmetic": Arithmetic,
    "steps": Steps,
    "months_later": MonthsLater,
    "days_later": DaysLater,
}
"""Questions by the ``kind`` of their config entry; the settings are the attributes of the class."""


def make_questions(
    name: str, entry: Mapping[str, Any], tokenizer: Tokenizer, *, bos: bool, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Draw different questions.

    Parameters
    ----------
    name : str
        Name of the questions in the config.
    entry : mapping
        ``kind``, ``count``, and the settings of the kind.
    tokenizer : Tokenizer
    bos : bool
        Whether BOS is put first.
    seed : int
        Base seed; the draw depends on the name, too.

    Returns
    -------
    (list of list of int, list of list of int)
        Tokens of prompts and of answers, at most ``count`` of them.

    Raises
    ------
    UserError
        If the kind or a setting does not exist, or the tokenizer joins a prompt with its answer.
    """
    settings = {key: value for key, value in entry.items() if key not in ("kind", "count")}
    kind = KINDS.get(entry["kind"])
    if kind is None:
        raise UserError(
            f"circuits.generation.questions.{name}.kind: {entry['kind']!r} is not known; choose from {', '.join(KINDS)}"
        )
    if unknown := settings.keys() - inspect.signature(kind).parameters.keys():
        raise UserError(
            f"circuits.generation.questions.{name}.{min(unknown)}: questions of kind {entry['kind']} have no such key"
        )
    every = kind(**settings)
    order = rng_for(seed, "questions", name).permutation(every.size)[: entry["count"]]
    builder = PromptBuilder(tokenizer, name, bos=bos)
    asked = [builder.question(*every.question(int(index))) for index in order]
    return [list(prompt) for prompt, _ in asked], [list(answer) for _, answer in asked]


def _date(day: datetime.date) -> Pieces:
    ending = "th" if 10 < day.day < 20 else ENDINGS.get(day.day % 10, "th")
    return [(f" {MONTHS[day.month - 1]}", ""), (f" {day.day}{ending}", "")]
