"""The original procedure of the sequence-continuation circuits, for comparison with the published numbers.

Lan, Torr, Barez 2023 (arXiv 2311.04131) and its public code. What differs from `SequenceTask`, and why one would not
do it again:

- no BOS in the analysis, but BOS while the model's correctness is tested;
- a block of prompts, one for each start, is taken only if the model is confident on all of them for number words and
  months alike, as these are the same prompts with other members;
- the corrupted prompt gets members drawn with replacement, only the last two of which must not be consecutive. They are
  put into the text by replacing one member after the other wherever it occurs, so that a new member may be replaced
  again, and the text may show others than were drawn, or the clean prompt's last member last.

Subjects are our own. The held-out split is the next prompts of the same kind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

from mechatlas.corpus import lexicon as lx
from mechatlas.io import UserError, seed_for
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.collect import Collected, Measure, Plan, Tally
from mechatlas.tasks.pairs import SPLITS, Pair, stack_pairs
from mechatlas.tasks.sequence_pairs import NAME_FRAME, SequenceTask, frame_pieces

CLASSES = ("numerals", "numwords", "months")
JOINT = ("numwords", "months")
SHOWN = 4
RULE = "confident"
DRAWS = 1000


def check_legacy(task: SequenceTask) -> None:
    """Check that a task is one that the original procedure knows.

    Raises
    ------
    UserError
        If it is not.
    """
    plain = (task.step, task.shown, task.highest, tuple(task.members)) == (1, SHOWN, 12, ())
    if task.sequence not in CLASSES or not plain:
        raise UserError(
            f"legacy: the original procedure is for {', '.join(CLASSES)}, four members shown in steps of 1; "
            "set legacy: false or take one of these"
        )


def collect_legacy(
    task: SequenceTask, builder: PromptBuilder, plan: Plan, seed: int, measure: Measure
) -> Collected:
    """Collect the prompts of a class as the original code did.

    Parameters
    ----------
    task : SequenceTask
        Gives class and frames.
    builder : PromptBuilder
        Without BOS.
    plan : Plan
        ``prompts`` and ``held_out`` are shared equally among the frames; the filter is `RULE` for whole blocks.
    seed : int
        Base seed.
    measure : callable
        Runs the model; it gets prompts with BOS.

    Returns
    -------
    Collected
        Discovery and held out, each frame by frame.

    Raises
    ------
    UserError
        If a frame's blocks are all refused.
    """
    check_legacy(task)
    tallies: dict[tuple[str, str], Tally] = {}
    parts: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for frame in task.frames:
        wanted = [plan.prompts // len(task.frames), plan.held_out // len(task.frames)]
        tally = tallies[SPLITS[0], frame] = Tally()
        kept = _accepted(task, builder, frame, seed, measure, tally, sum(wanted), plan)
        if not kept:
            raise UserError(
                f"task {builder.task}: none of {tally.candidates} {frame!r} prompts passed filter: {RULE} in blocks of "
                f"{len(task.starts)} starts; set legacy: false or use a model that can do the task"
            )
        parts[SPLITS[0]] += kept[: wanted[0]]
        parts[SPLITS[1]] += kept[wanted[0] : sum(wanted)]
    pairs = [replace(pair, split=split) for split in SPLITS for pair in parts[split]]
    return Collected(stack_pairs(builder.task, pairs, builder.bos), tallies)


def _accepted(
    task: SequenceTask,
    builder: PromptBuilder,
    frame: str,
    seed: int,
    measure: Measure,
    tally: Tally,
    wanted: int,
    plan: Plan,
) -> list[Pair]:
    """Return at least ``wanted`` pairs in blocks of all starts, fewer if too few candidates pass."""
    classes = dict.fromkeys((task.sequence, *JOINT))
    tasks = {name: SequenceTask(name, frames=task.frames) for name in classes}
    tester = PromptBuilder(
        builder.tokenizer, builder.task, bos=True, leading_blank=builder.leading_blank
    )
    rng = random.Random(seed_for(seed, "legacy members", task.sequence, frame))
    kept: list[Pair] = []
    for block in _blocks(builder, frame, len(task.starts), seed):
        if len(kept) >= wanted or tally.candidates >= plan.max_candidates * wanted:
            break
        tests = [
            _clean(t, tester, frame, s, i) for t in tasks.values() for i, s in enumerate(block)
        ]
        tally.candidates += len(block)
        if _confident(builder.task, tests, len(block), measure):
            tally.accepted += len(block)
            kept += [_pair(task, builder, frame, s, i, rng) for i, s in enumerate(block)]
    return kept


def _confident(name: str, tests: Sequence[Pair], size: int, measure: Measure) -> bool:
    # Prompts of different classes may differ in length, so each class is a batch of its own.
    blocks = [tests[first : first + size] for first in range(0, len(tests), size)]
    return all(measure(stack_pairs(name, block, True)).accepted(RULE).all() for block in blocks)


def _blocks(
    builder: PromptBuilder, frame: str, starts: int, seed: int
) -> Iterator[list[tuple[str, ...]]]:
    """Yield the subjects of one prompt for each start, the same for every class."""
    pool = lx.NAMES + lx.HELD_OUT_NAMES if frame == NAME_FRAME else lx.SUBJECTS
    words = builder.single_words(pool, first=True)
    rng = random.Random(seed_for(seed, "legacy subjects", frame))
    for _ in count():
        yield [tuple(rng.sample(words, SHOWN + 1)) for _ in range(starts)]


def _clean(
    task: SequenceTask, builder: PromptBuilder, frame: str, subjects: Sequence[str], start: int
) -> Pair:
    """Return a pair whose two prompts are the clean one."""
    members = [task.words[index] for index in task.run(start)]
    pieces = frame_pieces(frame, subjects, members[:-1])
    return builder.pair(
        pieces,
        pieces,
        f" {members[-1]}",
        f" {members[-2]}",
        group=frame,
        cell=f"{frame}/{start}",
        fillers=subjects,
    )


def _pair(
    task: SequenceTask,
    builder: PromptBuilder,
    frame: str,
    subjects: Sequence[str],
    start: int,
    rng: random.Random,
) -> Pair:
    """Return a pair corrupted by replacement in the text; draws that change its length are drawn again."""
    clean = _clean(task, builder, frame, subjects, start)
    shown = [task.words[index] for index in task.run(start)[:-1]]
    for _ in range(DRAWS):
        drawn = [rng.choice(task.words) for _ in shown]
        text = replace_in_turn(clean.text, shown, drawn)
        # The verb done holds the word one; the original code put it right afterwards.
        text = text.replace(f" {replace_in_turn(frame, shown, drawn)} in", f" {frame} in")
        tokens = tuple(builder.tokenizer.encode(text))
        if not _consecutive(task, *drawn[-2:]) and len(tokens) == len(clean.clean):
            return replace(clean, corrupted=tokens, corrupted_text=text)
    raise UserError(
        f"task {builder.task}: no members put into {clean.text!r} as the original code did keep its length; "
        "set legacy: false"
    )


def _consecutive(task: SequenceTask, first: str, second: str) -> bool:
    step = task.words.index(second) - task.words.index(first)
    # For words the original test compares with the predecessor in a list, whose first member's is its last.
    return step == 1 or (task.sequence != "numerals" and step == 1 - len(task.words))


def replace_in_turn(text: str, old: Sequence[str], new: Sequence[str]) -> str:
    """Replace each old member by its new one, everywhere and one after the other."""
    for before, after in zip(old, new, strict=True):
        text = text.replace(before, after)
    return text
