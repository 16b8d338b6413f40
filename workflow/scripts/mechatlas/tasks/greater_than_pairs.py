"""Greater-than in pairs: ``The war lasted from the year 1732 to the year 17`` -> a number above 32.

The task and its corruption (the same sentence from the year 01) are those of Hanna, Liu, Variengien 2023 (arXiv
2305.00586), section 2; the events are our own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.io import UserError, seed_for
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.pairs import Pair
from mechatlas.tasks.pools import need, one_of, split_pool

CORRUPTIONS = ("early", "late")
CENTURIES = tuple(range(11, 20))
STARTS = tuple(range(2, 100))
CHOICES = tuple(f"{number:02d}" for number in range(100))


@dataclass(frozen=True)
class GreaterThanTask:
    """Spans of years that have to end after they start.

    The answer is one of the later years, the wrong answer one of the others (but neither 00 nor 01, which no
    corruption makes right); ``choices`` and ``correct`` hold all hundred.

    Attributes
    ----------
    corruption : {"early", "late"}
        ``early``: the span starts in the year 01, so that answer and wrong answer are equally right; ``late``: it
        starts after the answer, so that both are wrong.

    Raises
    ------
    UserError
        If the corruption is not known.
    """

    corruption: str = "early"

    def __post_init__(self) -> None:
        one_of("corruption", self.corruption, CORRUPTIONS)

    def pairs(self, builder: PromptBuilder, split: str, seed: int) -> Iterator[Pair]:
        """Yield pairs, balanced over centuries; events and first years differ between the splits."""
        years = {century: split_years(builder, century) for century in CENTURIES}
        usable = [century for century, pairs in years.items() if 1 in pairs and len(pairs) >= 50]
        need(builder.task, "centuries whose years are two tokens of two digits", usable, 1)
        events = split_pool(builder.single_words(lx.YEAR_EVENTS), split, seed, "events")
        need(builder.task, "events", events, 1)
        starts = split_pool(STARTS, split, seed, "first years")
        rng = random.Random(seed_for(seed, "greater_than pairs", split))
        for century in cycle(usable):
            possible = sorted(years[century])
            start = rng.choice([year for year in possible[:-2] if year in starts])
            yield self._pair(builder, rng.choice(events), century, start, possible, rng)

    def _pair(
        self,
        builder: PromptBuilder,
        event: str,
        century: int,
        start: int,
        years: Sequence[int],
        rng: random.Random,
    ) -> Pair:
        wrong = rng.choice([year for year in years if 2 <= year <= start])
        answer = rng.choice([year for year in years[:-1] if year > start])
        later = [year for year in years if year > answer]
        return builder.pair(
            year_pieces(event, century, start),
            year_pieces(event, century, 1 if self.corruption == "early" else rng.choice(later)),
            CHOICES[answer],
            CHOICES[wrong],
            group=f"{century}",
            fillers=(event, CHOICES[start]),
            choices=CHOICES,
            correct=[number > start for number in range(100)],
        )


def year_pieces(event: str, century: int, start: int) -> tp.Pieces:
    """Return the pieces of a span of years, with the roles ``century``, ``start`` and ``end``."""
    values = {"E": event, "HI": str(century), "LO": CHOICES[start]}
    pieces = tp.fill(f" {tp.YEAR_SENTENCE}", values, {"LO": "start", "E": "event"})
    at = next(place for place, (_, role) in enumerate(pieces) if role == "start")
    return [
        (text, "century" if place == at - 1 else role) for place, (text, role) in enumerate(pieces)
    ]


def split_years(builder: PromptBuilder, century: int) -> frozenset[int]:
    """Return the years of a century that are two tokens, the century and a pair of digits."""
    head = builder.ids(f" {century}")
    if len(head) != 1:
        return frozenset()
    return frozenset(n for n in range(100) if _is_pair(builder, head, century, CHOICES[n]))


def _is_pair(builder: PromptBuilder, head: Sequence[int], century: int, pair: str) -> bool:
    try:
        tail = builder.ids(pair)
    except UserError:  # a tokenizer that joins digits with what is before them
        return False
    return len(tail) == 1 and builder.ids(f" {century}{pair}") == (*head, *tail)
