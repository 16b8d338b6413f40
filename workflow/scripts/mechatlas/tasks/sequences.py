"""Sequence continuation: ``Kettle done in 3. Van done in 4. Map done in 5. Hat done in 6. Pen done in`` -> ``7``.

The frames (done, lost, born) and the comparison with the last shown member are those of Lan, Torr, Barez 2023
(arXiv 2311.04131); subjects are our own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

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

SHOWN = 4


def held_out_starts(class_name: str, frame: str) -> tuple[int, ...]:
    """Return the starts of a class that training never shows in a frame."""
    return tuple(s for s in lx.starts(class_name) if lx.held_out_start(class_name, frame, s))


def build_sequences(
    encode: Encode,
    bos: int,
    class_name: str,
    frame: str,
    count: int,
    seed: int,
    starts: Sequence[int] | None = None,
) -> PromptBatch:
    """Build continuation prompts of one class in one frame, balanced over starts.

    Parameters
    ----------
    encode, bos
        Tokenizer and the id put first.
    class_name : str
        A key of `mechatlas.corpus.lexicon.SEQUENCES`.
    frame : {"done", "lost", "born"}
        ``born`` takes names as subjects.
    count : int
        Number of prompts.
    seed : int
        Base seed.
    starts : sequence of int, optional
        Index of the first shown member; all possible ones by default.

    Returns
    -------
    PromptBatch
        Answer: the fifth member; wrong: the last shown one. Roles ``m1`` ... ``m4``, ``end``; the group is
        ``class/frame/start``. All prompts have the same length.

    Raises
    ------
    UserError
        If class, frame or starts do not exist or a member or subject is not a single token.
    """
    if class_name not in lx.SEQUENCES or frame not in lx.FRAMES:
        raise UserError(
            f"sequences: class {class_name!r}, frame {frame!r}; classes are {', '.join(lx.SEQUENCES)}, "
            f"frames {', '.join(lx.FRAMES)}"
        )
    possible = lx.starts(class_name)
    chosen = tuple(possible if starts is None else starts)
    if not chosen or any(start not in possible for start in chosen):
        raise UserError(
            f"sequences: starts {chosen} of {class_name}; use some of 0 to {len(possible) - 1}"
        )
    rng = random.Random(seed_for(seed, "sequences", class_name, frame))
    prompts = [
        _prompt(encode, bos, class_name, frame, chosen[index % len(chosen)], rng)
        for index in range(count)
    ]
    return batch_of("sequences", prompts)


def _prompt(
    encode: Encode, bos: int, class_name: str, frame: str, start: int, rng: random.Random
) -> Prompt:
    members = lx.members_from(class_name, start, SHOWN + 1)
    pool = lx.NAMES + lx.HELD_OUT_NAMES if frame == "born" else lx.SUBJECTS
    subjects = rng.sample(pool, SHOWN + 1)
    for word in (*subjects, *members):
        single_token(f" {word}", encode, f"sequences ({class_name}, {frame})")
    pieces: tp.Pieces = []
    for index in range(SHOWN):
        values = {"W": subjects[index], "F": frame, "M": members[index]}
        clause = tp.fill(tp.SEQUENCE_CLAUSE, values, {"M": f"m{index + 1}"})
        pieces += led_by_blank(clause)
    pieces += led_by_blank(tp.fill(tp.SEQUENCE_OPEN, {"W": subjects[-1], "F": frame}))
    tokens, roles = encode_pieces(pieces, encode, bos)
    answer, wrong = (single_token(f" {m}", encode, class_name) for m in (members[-1], members[-2]))
    return Prompt(tokens, roles, answer, wrong, f"{class_name}/{frame}/{start}")
