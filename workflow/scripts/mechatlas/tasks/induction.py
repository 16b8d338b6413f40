"""Repeated random tokens: what follows a token the second time is what followed it the first time.

The measurement is that of Olsson et al. 2022 (transformer-circuits.pub, In-context Learning and Induction Heads).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechatlas.io import UserError, rng_for
from mechatlas.tasks.prompts import PromptBatch


def repeated_tokens(
    vocabulary: Sequence[int], bos: int, count: int, period: int, seed: int
) -> np.ndarray:
    """Return BOS and a block of random distinct tokens, twice.

    Parameters
    ----------
    vocabulary : sequence of int
        Ids to draw from; BOS should not be among them.
    bos, count, period : int
        Id put first, number of rows, tokens in the block.
    seed : int
        Base seed.

    Returns
    -------
    numpy.ndarray
        [count, 1 + 2 * period] int64.

    Raises
    ------
    UserError
        If the block is shorter than 2 or longer than the vocabulary.
    """
    ids = np.asarray(vocabulary, dtype=np.int64)
    if not 2 <= period <= len(ids):
        raise UserError(f"induction: period {period}; use 2 to {len(ids)} (the vocabulary)")
    rng = rng_for(seed, "induction", period)
    blocks = np.stack([rng.choice(ids, size=period, replace=False) for _ in range(count)])
    return np.concatenate([np.full((count, 1), bos, dtype=np.int64), blocks, blocks], axis=1)


def build_induction(
    vocabulary: Sequence[int], bos: int, count: int, period: int, seed: int
) -> PromptBatch:
    """Build prompts that stop somewhere in the second copy.

    Returns
    -------
    PromptBatch
        Answer: the token that followed the last one before; wrong: another token of the block. Roles ``previous``
        (the earlier occurrence of the last token), ``source`` (the answer's earlier place), ``end``. Prompts differ in
        length.

    Raises
    ------
    UserError
        See `repeated_tokens`.
    """
    tokens = repeated_tokens(vocabulary, bos, count, period, seed)
    rng = rng_for(seed, "induction", "cuts", period)
    seen = rng.integers(1, period, size=count)
    lengths = 1 + period + seen
    rows = np.arange(count)
    other = 1 + (seen + rng.integers(1, period, size=count)) % period
    answers, wrong = tokens[rows, 1 + seen], tokens[rows, other]
    width = int(lengths.max())
    prompts = np.where(np.arange(width)[None, :] < lengths[:, None], tokens[:, :width], bos)
    roles = {"previous": seen.copy(), "source": seen + 1, "end": lengths - 1}
    return PromptBatch("induction", prompts, lengths, answers, wrong, roles, ("induction",) * count)
