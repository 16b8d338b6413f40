"""Indirect-object identification: ``When Mary and John ..., John gave a drink to`` -> ``Mary``.

The task is that of Wang et al. 2022 (arXiv 2211.00593), section 2; names, templates and fillers are our own.
"""

from __future__ import annotations

import random

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

NAMES = {"train": lx.NAMES, "held_out": lx.HELD_OUT_NAMES}
CLAUSES = {"train": tp.training_clauses, "held_out": tp.held_out_clauses}


def build_ioi(
    encode: Encode,
    bos: int,
    count: int,
    seed: int,
    names: str = "held_out",
    templates: str = "held_out",
    distractors: bool = True,
) -> PromptBatch:
    """Build indirect-object prompts, half ABBA and half BABA.

    Parameters
    ----------
    encode, bos
        Tokenizer and the id put first.
    count : int
        Number of prompts.
    seed : int
        Base seed.
    names, templates : {"train", "held_out"}
        Which names, and which opening and closing clauses.
    distractors : bool
        Whether sentences before and between the clauses, some with a third name, shift the positions.

    Returns
    -------
    PromptBatch
        Answer: the indirect object; wrong: the subject. Roles ``io``, ``s1``, ``s2``, ``end``; the group is the order.

    Raises
    ------
    UserError
        If a name is not a single token or a set is unknown.
    """
    if names not in NAMES or templates not in CLAUSES:
        raise UserError(f"ioi: names {names!r}, templates {templates!r}; each is train or held_out")
    rng = random.Random(seed_for(seed, "ioi", names, templates))
    prompts = []
    for index in range(count):
        order = ("ABBA", "BABA")[index % 2]
        io, subject, bystander = rng.sample(NAMES[names], 3)
        values = {"IO": io, "S": subject, "C": bystander}
        values |= {"P": rng.choice(lx.PLACES), "O": rng.choice(lx.OBJECTS)}
        asides = [rng.choice(tp.IOI_PREFIXES), rng.choice(tp.IOI_MIDDLES)] if distractors else []
        pieces = tp.ioi_pieces(*CLAUSES[templates](rng), values, order, *asides)
        tokens, roles = encode_pieces(led_by_blank(pieces), encode, bos)
        answer, wrong = (single_token(f" {n}", encode, "ioi names") for n in (io, subject))
        prompts.append(Prompt(tokens, roles, answer, wrong, order))
    return batch_of("ioi", prompts)
