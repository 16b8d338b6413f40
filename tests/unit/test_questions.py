"""Questions with answers of several tokens: right, different, and made of the tokens of their text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mechatlas.corpus.templates import text_of
from mechatlas.io import UserError
from mechatlas.models.tokenizer import Tokenizer, load_tokenizer
from mechatlas.tasks.questions import (
    KINDS,
    Arithmetic,
    DaysLater,
    MonthsLater,
    Steps,
    make_questions,
)

MODEL = Path(__file__).resolve().parents[2] / "resources" / "models" / "demo-4l"
# Written down here, not computed as there.
MONTHS = (
    "January February March April May June July August September October November December".split()
)
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(MODEL)


def every(kind: Any) -> list[tuple[str, str]]:
    """All questions of a kind as texts."""
    asked = [kind.question(index) for index in range(kind.size)]
    return [(text_of(pieces), answer) for pieces, answer in asked]


@pytest.mark.parametrize(("digits", "least", "most"), [(1, 1, 9), (2, 10, 99)])
def test_sums_and_differences(digits: int, least: int, most: int) -> None:
    count = most - least + 1
    sums = every(Arithmetic("addition", digits))
    assert len(set(sums)) == count**2
    differences = every(Arithmetic("subtraction", digits))
    assert len(set(differences)) == count * (count + 1) / 2
    for (prompt, answer), sign in [*((q, 1) for q in sums), *((q, -1) for q in differences)]:
        one, two = map(int, re.fullmatch(r" (\d+) [+-] (\d+) =", prompt).groups())
        assert least <= two <= most and least <= one <= most
        assert (sign > 0 or one >= two) and answer == f" {one + sign * two}"


def test_sequences() -> None:
    asked = every(Steps(step=10, shown=3, highest=20))
    assert len(set(asked)) == 20 and (" 18 28 38", " 48") in asked
    assert (" 1 2", " 3") in every(Steps(1, 2, 1))


def test_months_later() -> None:
    asked = every(MonthsLater(most=14))
    assert len(set(asked)) == 12 * 13
    for prompt, answer in asked:
        form = r" If this month is (\w+), and (\d+) months pass, then the month is"
        start, count = re.fullmatch(form, prompt).groups()
        year = MONTHS * 3
        assert answer == f" {year[MONTHS.index(start) + int(count)]}" and 2 <= int(count) <= 14


def test_days_later() -> None:
    asked = every(DaysLater(most=31))
    assert len(set(asked)) == 12 * 28 * 30
    endings = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
    for prompt, answer in asked:
        form = r" If today is (\w+) (\d+)(..), then in (\d+) days it is"
        month, day, ending, count = re.fullmatch(form, prompt).groups()
        assert ending == endings.get(int(day), "th") and 2 <= int(count) <= 31
        at, number = MONTHS.index(month), int(day) + int(count)
        while number > LENGTHS[at]:
            number, at = number - LENGTHS[at], (at + 1) % 12
        assert answer == f" {MONTHS[at]} {number}{endings.get(number, 'th')}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bos", [True, False])
def test_tokens_are_those_of_the_text(kind: str, bos: bool, tokenizer: Tokenizer) -> None:
    entry = {"kind": kind, "count": 40}
    prompts, answers = make_questions("q", entry, tokenizer, bos=bos, seed=0)
    texts = every(KINDS[kind]())
    assert len(prompts) == len(answers) == 40 and len({tuple(p) for p in prompts}) == 40
    for prompt, answer in zip(prompts, answers, strict=True):
        assert (prompt[0] == tokenizer.bos_id) == bos
        text = tokenizer.decode(prompt[bos:])
        assert (text, tokenizer.decode(answer)) in texts
        assert tokenizer.encode(text + tokenizer.decode(answer)) == prompt[bos:] + answer
    if kind == "days_later":
        assert all(len(answer) >= 2 for answer in answers)


def test_draws_depend_on_seed_and_name_only(tokenizer: Tokenizer) -> None:
    entry = {"kind": "arithmetic", "count": 1000, "operation": "subtraction"}

    def drawn(name: str, seed: int, **changes: Any) -> list[list[int]]:
        return make_questions(name, entry | changes, tokenizer, bos=True, seed=seed)[0]

    assert drawn("a", 0) == drawn("a", 0) and len(drawn("a", 0)) == 45
    assert drawn("a", 0, count=7) == drawn("a", 0)[:7]
    assert drawn("a", 0) != drawn("a", 1) and drawn("a", 0) != drawn("b", 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"kind": "sums"}, r"questions\.q\.kind: 'sums'.*arithmetic"), ({"step": 2}, r"q\.step: ")],
)
def test_what_does_not_exist_is_one_line(changes: dict, says: str, tokenizer: Tokenizer) -> None:
    entry = {"kind": "arithmetic", "count": 5}
    with pytest.raises(UserError, match=says):
        make_questions("q", entry | changes, tokenizer, bos=True, seed=0)
