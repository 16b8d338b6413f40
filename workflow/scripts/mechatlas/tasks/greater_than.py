"""Greater-than: ``The war lasted from the year 1732 to the year 17`` -> a number above 32.

The task is that of Hanna, Liu, Variengien 2023 (arXiv 2305.00586); the events are our own.
"""

from __future__ import annotations

import random

import numpy as np

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.io import UserError, seed_for
from mechatlas.tasks.prompts import (
    Encode,
    Prompt,
    PromptBatch,
    batch_of,
    encode_pieces,
    led_by_blank,
    single_token,
)

CENTURIES = range(11, 20)
STARTS = range(2, 99)


def build_greater_than(
    encode: Encode, bos: int, count: int, seed: int, held_out: bool = True
) -> PromptBatch:
    """Build greater-than prompts.

    Parameters
    ----------
    encode, bos
        Tokenizer and the id put first.
    count, seed : int
        Number of prompts and base seed.
    held_out : bool
        Whether the first years are ones from which training has no span, or any.

    Returns
    -------
    PromptBatch
        ``choices``: the tokens of 00 ... 99; ``correct``: those above the first year. Answer and wrong answer are one
        right and one wrong choice. Roles ``century``, ``start``, ``end``; all prompts have the same length.

    Raises
    ------
    UserError
        If years are not two tokens of two digits.
    """
    rng = random.Random(seed_for(seed, "greater_than", int(held_out)))
    years = [(c, s) for c in CENTURIES for s in STARTS if lx.held_out_year(c, s) or not held_out]
    digits = np.array([single_token(f"{n:02d}", encode, "greater_than") for n in range(100)])
    prompts, correct = [], []
    for _ in range(count):
        century, start = rng.choice(years)
        values = {"E": rng.choice(lx.YEAR_EVENTS), "HI": str(century), "LO": f"{start:02d}"}
        single_token(f" {century}", encode, "greater_than")
        pieces = led_by_blank(tp.fill(tp.YEAR_SENTENCE, values, {"LO": "start"}))
        tokens, roles = encode_pieces(pieces, encode, bos)
        if tokens[roles["start"]] != digits[start]:
            raise UserError(
                f"greater_than: the year {century}{start:02d} is not two tokens in this tokenizer"
            )
        answer, wrong = digits[rng.randint(start + 1, 99)], digits[rng.randint(0, start)]
        roles["century"] = roles["start"] - 1
        prompts.append(Prompt(tokens, roles, int(answer), int(wrong), f"{century}"))
        correct.append(np.arange(100) > start)
    batch = batch_of("greater_than", prompts)
    return PromptBatch(**{**vars(batch), "choices": digits, "correct": np.stack(correct)})
