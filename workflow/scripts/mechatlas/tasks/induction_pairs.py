"""Induction in pairs: a block of random words, begun again, continues as it did the first time.

The measurement on repeated random tokens is that of Olsson et al. 2022 (transformer-circuits.pub, In-context Learning
and Induction Heads). The corruption moves the earlier occurrence of the last token and nothing else, so that what
differs between the two prompts is exactly what an induction head has to look up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

from mechatlas.io import UserError, seed_for
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.pairs import Pair
from mechatlas.tasks.pools import need, one_of, split_pool

CORRUPTIONS = ("swap", "replace")
SHORTEST = 8
WORDS = 1000
"""Tokens that the blocks of a split are drawn from."""
EXTRA = 2
"""Tokens of the block after the answer, at least: a wrong answer and the token before it."""


@dataclass(frozen=True)
class InductionTask:
    """Blocks of different random words that break off in their second copy.

    Attributes
    ----------
    tokens : int
        Length of the prompt, BOS not counted. The block is longer than its half and at most three quarters of it, and
        the prompts are balanced over these periods, so that no fixed distance leads to the answer.
    corruption : {"swap", "replace"}
        ``swap``: the earlier occurrence of the last token changes places with the token before the wrong answer, which
        thereby becomes right; ``replace``: it is replaced by a new token, so that nothing is repeated at the end.

    Raises
    ------
    UserError
        If a setting is out of its range.
    """

    tokens: int = 24
    corruption: str = "swap"

    def __post_init__(self) -> None:
        one_of("corruption", self.corruption, CORRUPTIONS)
        if self.tokens < SHORTEST:
            raise UserError(f"tokens: {self.tokens} is too small; use at least {SHORTEST}")

    @property
    def periods(self) -> range:
        """The lengths of the block."""
        least = self.tokens // 2 + EXTRA
        return range(least, max(least, 3 * self.tokens // 4) + 1)

    def pairs(self, builder: PromptBuilder, split: str, seed: int) -> Iterator[Pair]:
        """Yield pairs, balanced over periods; no token is drawn in both splits."""
        rng = random.Random(seed_for(seed, "induction pairs", split, self.tokens))
        half = split_pool(range(builder.tokenizer.vocab_size), split, seed, "vocabulary")
        # As many as are needed only: to look at every token of a large vocabulary takes seconds.
        shuffled = rng.sample(half, len(half))
        vocabulary = list(islice(word_tokens(builder.tokenizer, shuffled), WORDS))
        need(builder.task, "tokens that are words", vocabulary, self.periods[-1] + 1)
        for period in cycle(self.periods):
            *block, new = rng.sample(vocabulary, period + 1)
            yield self._pair(builder, block, new, rng)

    def _pair(self, builder: PromptBuilder, block: list[int], new: int, rng: random.Random) -> Pair:
        # The last token of the prompt is block[last]; the token before the wrong answer occurs once.
        last = self.tokens - len(block) - 1
        other = rng.randrange(last + 2, len(block) - 1)
        moved = list(block)
        moved[last], moved[other] = block[other], block[last]
        if self.corruption == "replace":
            moved = [*block[:last], new, *block[last + 1 :]]
        answer, wrong = block[last + 1], block[other + 1]
        head = (builder.tokenizer.bos_id,) if builder.bos else ()
        clean, corrupted = (head + (*first, *block[: last + 1]) for first in (block, moved))
        strings, start = builder.tokenizer.strings, len(head)
        roles = {"previous": last, "source": last + 1}
        roles |= {"wrong_previous": other, "wrong_source": other + 1}
        return Pair(
            clean=clean,
            corrupted=corrupted,
            answer=answer,
            wrong=wrong,
            roles={role: start + place for role, place in roles.items()},
            group=f"period {len(block)}",
            text="".join(strings(clean[start:])),
            corrupted_text="".join(strings(corrupted[start:])),
            answer_text=strings([answer])[0],
            wrong_text=strings([wrong])[0],
            fillers=tuple(strings(block)),
            corrupted_answer=wrong if self.corruption == "swap" else -1,
        )


def word_tokens(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[int]:
    """Yield those tokens that are a word, or the beginning of one, with the blank before it."""
    for token in tokens:
        text = tokenizer.strings([token])[0]
        if text[:1] == " " and text[1:].isalpha():
            yield token
