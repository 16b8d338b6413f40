"""Sequence continuation in pairs: ``Kettle done in 3. Van done in 4. Map done in 5. Hat done in 6. Pen done in``.

The frames (done, lost, born) and the comparison of the next member with the last shown one are those of Lan, Torr,
Barez 2023 (arXiv 2311.04131), section 3; subjects are our own. Their corruption, random members in place of the
sequence, still showed the clean prompt's last member last in 8 to 10 % of prompts, so that the clean answer stayed
right. `leak_free` rules that out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.io import UserError, seed_for
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.pairs import Pair
from mechatlas.tasks.pools import need, one_of, split_pool

CORRUPTIONS = ("random", "permute", "repeat")
DRAWS = 10_000
NAME_FRAME = "born"


@dataclass(frozen=True)
class SequenceTask:
    """Clauses that count through a class of words, the last one left open.

    Attributes
    ----------
    sequence : str
        A key of `mechatlas.corpus.lexicon.SEQUENCES`.
    members : sequence of str
        Ordered members of a class of one's own, in place of ``sequence``.
    highest : int
        The last of the numerals.
    step : int
        From one shown member to the next: 1, -1 for falling sequences, or any other but 0.
    shown : int
        Members before the open clause.
    frames : sequence of str
        Verbs; ``born`` takes names as subjects.
    corruption : str
        What the corrupted prompt shows: ``random`` different members, a permutation of the clean ones (``permute``),
        or one other member throughout (``repeat``); see `leak_free`.

    Raises
    ------
    UserError
        If a setting is out of its range.
    """

    sequence: str = "numerals"
    members: Sequence[str] = ()
    highest: int = 12
    step: int = 1
    shown: int = 4
    frames: Sequence[str] = lx.FRAMES
    corruption: str = "random"

    def __post_init__(self) -> None:
        one_of("sequence", self.sequence, tuple(lx.SEQUENCES))
        one_of("corruption", self.corruption, CORRUPTIONS)
        if not self.step or self.shown < 2 or not self.frames:
            raise UserError(
                f"sequence: step {self.step}, shown {self.shown}, frames {list(self.frames)}; the step must not be 0, "
                "shown at least 2, and there must be a frame"
            )
        if len(set(self.words)) < len(self.words) or not self.starts:
            raise UserError(
                f"sequence: {len(self.words)} members in steps of {self.step} give no run of {self.shown + 1} "
                "different ones; name more members, each once, or show fewer"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """The members of the class in order."""
        if self.members:
            return tuple(str(member) for member in self.members)
        if self.sequence == "numerals":
            return tuple(str(number) for number in range(1, self.highest + 1))
        return lx.SEQUENCES[self.sequence]

    @property
    def cyclic(self) -> bool:
        """Whether the last member is followed by the first."""
        return not self.members and self.sequence in lx.CYCLIC

    @property
    def starts(self) -> tuple[int, ...]:
        """Indices of first members from which a run of ``shown`` and a next one exists."""
        count, reach = len(self.words), self.shown * self.step
        if self.cyclic:
            return tuple(range(count)) if len(set(self.run(0))) > self.shown else ()
        return tuple(start for start in range(count) if 0 <= start + reach < count)

    def run(self, start: int) -> list[int]:
        """Return the indices of the shown members and of the next one."""
        count = len(self.words)
        return [(start + self.step * place) % count for place in range(self.shown + 1)]

    def pairs(self, builder: PromptBuilder, split: str, seed: int) -> Iterator[Pair]:
        """Yield pairs, balanced over frames and starts; classes of one seed share their subjects."""
        check_members(builder, self.words)
        subjects = {frame: subjects_of(builder, frame, split, seed) for frame in self.frames}
        for frame in self.frames:
            need(builder.task, f"subjects of {frame!r}", subjects[frame], self.shown + 1)
        rng = random.Random(seed_for(seed, "sequence pairs", split))
        # Members are drawn apart, so that the subjects do not depend on the class.
        draws = random.Random(seed_for(seed, "sequence pairs", split, "members"))
        for start, frame in cycle(product(self.starts, self.frames)):
            chosen = rng.sample(subjects[frame], self.shown + 1)
            yield self.pair(builder, frame, chosen, start, draws)

    def pair(
        self,
        builder: PromptBuilder,
        frame: str,
        subjects: Sequence[str],
        start: int,
        rng: random.Random,
    ) -> Pair:
        """Build one pair."""
        run = self.run(start)
        corrupted = self.corrupted(run, rng)
        words = self.words
        following = self.following(corrupted[-1])
        return builder.pair(
            frame_pieces(frame, subjects, [words[i] for i in run[:-1]]),
            frame_pieces(frame, subjects, [words[i] for i in corrupted]),
            f" {words[run[-1]]}",
            f" {words[run[-2]]}",
            group=frame,
            cell=f"{frame}/{start}",
            fillers=subjects,
            corrupted_answer="" if following is None else f" {words[following]}",
        )

    def following(self, member: int) -> int | None:
        """Return the index of the member that follows, None at the end."""
        index = member + self.step
        if self.cyclic:
            return index % len(self.words)
        return index if 0 <= index < len(self.words) else None

    def corrupted(self, run: Sequence[int], rng: random.Random) -> list[int]:
        """Draw the members of the corrupted prompt.

        Raises
        ------
        UserError
            If no draw is free of leaks.
        """
        others = [index for index in range(len(self.words)) if index != run[-1]]
        draw: dict[str, Callable[[], list[int]]] = {
            "random": lambda: rng.sample(others, self.shown),
            "permute": lambda: rng.sample(run[:-1], self.shown),
            "repeat": lambda: [rng.choice(others)] * self.shown,
        }
        if len(others) >= self.shown:
            for _ in range(DRAWS):
                members = draw[self.corruption]()
                if self.leak_free(members, run):
                    return members
        raise UserError(
            f"sequence: no {self.corruption} members for {[self.words[i] for i in run[:-1]]} without a hint at the "
            f"answer among {len(self.words)} members; use another corruption or more members"
        )

    def leak_free(self, members: Sequence[int], run: Sequence[int]) -> bool:
        """Tell whether corrupted members give nothing away of the clean answer.

        The answer is not shown, the last member is not the clean one's, and nowhere does a member follow its
        predecessor by the step of the task or by one.
        """
        if run[-1] in members or members[-1] == run[-2]:
            return False
        count = len(self.words)
        steps = [(b - a) for a, b in zip(members, members[1:], strict=False)]
        steps = [step % count for step in steps] if self.cyclic else steps
        hints = {self.step, 1} if not self.cyclic else {self.step % count, 1}
        return not hints & set(steps)


def frame_pieces(frame: str, subjects: Sequence[str], members: Sequence[str]) -> tp.Pieces:
    """Return the pieces of a prompt: a clause for each member, then the open one.

    Roles: ``w1`` ... for the subjects, the open one included, and ``m1`` ... for the members.
    """
    pieces: tp.Pieces = []
    for place, (subject, member) in enumerate(zip(subjects, members, strict=False), 1):
        values = {"W": subject, "F": frame, "M": member}
        pieces += tp.fill(f" {tp.SEQUENCE_CLAUSE}", values, {"W": f"w{place}", "M": f"m{place}"})
    values = {"W": subjects[len(members)], "F": frame}
    return pieces + tp.fill(f" {tp.SEQUENCE_OPEN}", values, {"W": f"w{len(members) + 1}"})


def subjects_of(builder: PromptBuilder, frame: str, split: str, seed: int) -> tuple[str, ...]:
    """Return the subjects of a frame in a split: names for ``born``, else nouns; each a single token."""
    pool = lx.NAMES + lx.HELD_OUT_NAMES if frame == NAME_FRAME else lx.SUBJECTS
    kind = "names" if frame == NAME_FRAME else "subjects"
    return split_pool(builder.single_words(pool, first=True), split, seed, kind)


def check_members(builder: PromptBuilder, words: Sequence[str]) -> None:
    """Check that all members have equally many tokens.

    Raises
    ------
    UserError
        Naming the member that does not.
    """
    counts = {word: len(builder.ids(f" {word}")) for word in words}
    usual = sorted(counts.values())[len(counts) // 2]
    odd = [word for word, count in counts.items() if count != usual]
    if odd:
        raise UserError(
            f"task {builder.task}: {odd[0]!r} is {counts[odd[0]]} tokens in this model's tokenizer where most members "
            f"are {usual}; leave it out (highest or members) or drop the task for this model"
        )
