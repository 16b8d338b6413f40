"""Digits interleaved with months: ``1 January 2 February 3 March 4 April 5`` -> ``May``.

A probe for heads that match members by type, after Lan, Torr, Barez 2023 (arXiv 2311.04131). The corrupted prompt
keeps the numerals and shows months without order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mechatlas.corpus.templates import Pieces
from mechatlas.io import UserError, seed_for
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.pairs import SPLITS, Pair
from mechatlas.tasks.pools import one_of
from mechatlas.tasks.sequence_pairs import SequenceTask, check_members

DIGITS = ("ordered", "random")


@dataclass(frozen=True)
class InterleavedTask:
    """Months in order after numerals, the last numeral left alone.

    Attributes
    ----------
    digits : {"ordered", "random"}
        Whether the numerals count up as well.
    highest : int
        The last of the numerals.
    shown : int
        Months shown.
    corruption : str
        See `mechatlas.tasks.sequence_pairs.SequenceTask`.

    Raises
    ------
    UserError
        If a setting is out of its range.
    """

    digits: str = "ordered"
    highest: int = 24
    shown: int = 4
    corruption: str = "random"

    def __post_init__(self) -> None:
        one_of("digits", self.digits, DIGITS)
        if self.highest <= self.shown + 1:
            raise UserError(
                f"highest: {self.highest} is too small to set {self.shown + 1} numerals in two splits; "
                f"use at least {self.shown + 2}"
            )
        _ = self.months

    @property
    def months(self) -> SequenceTask:
        """The months as a task of their own."""
        return SequenceTask("months", shown=self.shown, corruption=self.corruption)

    def pairs(self, builder: PromptBuilder, split: str, seed: int) -> Iterator[Pair]:
        """Yield pairs, balanced over the first month, which end where the numerals count up and all have been used.

        Discovery begins with odd numerals, held out with even ones.
        """
        check_members(builder, self.months.words)
        check_members(builder, [str(number) for number in range(1, self.highest + 1)])
        rng = random.Random(seed_for(seed, "interleaved", split, self.digits))
        numerals = self._rising if self.digits == "ordered" else self._unordered
        for chosen in numerals(int(split == SPLITS[0]), rng):
            for start in self.months.starts:
                yield self._pair(builder, start, chosen, rng)

    def _rising(self, odd: int, rng: random.Random) -> Iterator[list[int]]:
        firsts = [n for n in range(1, self.highest - self.shown + 1) if n % 2 == odd]
        for first in rng.sample(firsts, len(firsts)):
            yield list(range(first, first + self.shown + 1))

    def _unordered(self, odd: int, rng: random.Random) -> Iterator[list[int]]:
        while True:
            numbers = rng.sample(range(1, self.highest + 1), self.shown + 1)
            rising = any(b - a == 1 for a, b in zip(numbers, numbers[1:], strict=False))
            if numbers[0] % 2 == odd and not rising:
                yield numbers

    def _pair(
        self, builder: PromptBuilder, start: int, numerals: list[int], rng: random.Random
    ) -> Pair:
        months, run = self.months, self.months.run(start)
        corrupted = months.corrupted(run, rng)
        following = months.following(corrupted[-1])
        words = months.words
        return builder.pair(
            _pieces(numerals, [words[i] for i in run[:-1]]),
            _pieces(numerals, [words[i] for i in corrupted]),
            f" {words[run[-1]]}",
            f" {words[run[-2]]}",
            group=self.digits,
            cell=f"{self.digits}/{start}",
            corrupted_answer="" if following is None else f" {words[following]}",
        )


def _pieces(numerals: list[int], months: list[str]) -> Pieces:
    """Return the pieces, with roles ``d1`` ... for the numerals and ``m1`` ... for the months."""
    pieces: Pieces = []
    for place, (numeral, month) in enumerate(zip(numerals, months, strict=False), 1):
        pieces += [(f" {numeral}", f"d{place}"), (f" {month}", f"m{place}")]
    return [*pieces, (f" {numerals[-1]}", f"d{len(numerals)}")]
