"""Collecting the prompts of a task: candidates, the model's own correctness, balance, two disjoint splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

import numpy as np

from mechatlas.io import UserError
from mechatlas.tasks.answers import FILTERS, EndScores
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.pairs import SPLITS, Pair, PairBatch, stack_pairs

logger = logging.getLogger(__name__)

Measure = Callable[[PairBatch], EndScores]
"""A batch to what the model says after its clean prompts."""


class Task(Protocol):
    """What a task has to be able to do.

    A task is constructed with its settings as keyword arguments. See `mechatlas.tasks.registry` for how a task of
    one's own is named in the config.
    """

    def pairs(self, builder: PromptBuilder, split: str, seed: int) -> Iterator[Pair]:
        """Yield candidates, endlessly or until there are no more.

        The families follow each other in turn, so that any number of candidates is balanced over them. What is
        yielded depends on the arguments only, and the words drawn in one split never occur in the other.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """How many prompts are wanted and which ones are taken.

    Attributes
    ----------
    prompts, held_out : int
        Prompts to find circuits with, and to test them on.
    filter : str
        See `mechatlas.tasks.answers.EndScores.accepted`.
    max_candidates : int
        Candidates looked at for each wanted prompt, at most.
    """

    prompts: int = 64
    held_out: int = 64
    filter: str = "above_wrong"
    max_candidates: int = 8

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise UserError(
                f"filter: {self.filter!r} is not known; choose from {', '.join(FILTERS)}"
            )
        for name, least in (("prompts", 1), ("held_out", 0), ("max_candidates", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: {getattr(self, name)} is too small; use at least {least}")


@dataclass
class Tally:
    """How many candidates of one family in one split were looked at, repeated an earlier one, and passed the filter."""

    candidates: int = 0
    repeated: int = 0
    accepted: int = 0


@dataclass
class Collected:
    """The prompts of a task and how they came about.

    Attributes
    ----------
    batch : PairBatch
        Discovery first, then held out, each in the order in which they were generated.
    tallies : dict
        (split, family) to `Tally`.
    """

    batch: PairBatch
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)


def collect(
    task: Task, builder: PromptBuilder, plan: Plan, seed: int, measure: Measure | None = None
) -> Collected:
    """Collect the prompts of a task.

    Parameters
    ----------
    task : Task
    builder : PromptBuilder
    plan : Plan
    seed : int
        Base seed.
    measure : callable, optional
        Runs the model whose correctness decides; needed unless ``plan.filter`` is ``none``.

    Returns
    -------
    Collected

    Raises
    ------
    UserError
        If no candidate passes the filter, prompts differ in length, or an answer is not a single token.
    ValueError
        If the filter needs a model and there is none.
    """
    if measure is None and plan.filter != "none":
        raise ValueError(f"filter {plan.filter!r} needs a model")
    tallies: dict[tuple[str, str], Tally] = {}
    seen: set[tuple[int, ...]] = set()
    kept: list[Pair] = []
    for split, count in zip(SPLITS, (plan.prompts, plan.held_out), strict=True):
        if count:
            candidates = task.pairs(builder, split, seed)
            source = _Source(candidates, builder, plan, measure, seen, tallies, split)
            kept += source.take(count)
    return Collected(stack_pairs(builder.task, kept, builder.bos), tallies)


@dataclass
class _Source:
    """The candidates of one split."""

    candidates: Iterator[Pair]
    builder: PromptBuilder
    plan: Plan
    measure: Measure | None
    seen: set[tuple[int, ...]]
    tallies: dict[tuple[str, str], Tally]
    split: str

    def take(self, count: int) -> list[Pair]:
        kept: list[Pair] = []
        left: Counter[str] = Counter()
        for looked_at in range(0, self.plan.max_candidates * count, count):
            chunk = [replace(p, split=self.split) for p in islice(self.candidates, count)]
            if not chunk:
                break
            if not looked_at:
                left = _quotas([pair.cell or pair.group for pair in chunk], count)
            for pair in self._accepted(chunk):
                cell = pair.cell or pair.group
                if left[cell] > 0:
                    left[cell] -= 1
                    kept.append(pair)
            if len(kept) == count:
                return kept
        self._short(kept, count)
        return kept

    def _accepted(self, chunk: Sequence[Pair]) -> list[Pair]:
        new = [pair for pair in chunk if self._is_new(pair)]
        if not new or self.measure is None:
            passed = np.ones(len(new), dtype=bool)
        else:
            scores = self.measure(stack_pairs(self.builder.task, new, self.builder.bos))
            passed = scores.accepted(self.plan.filter)
        accepted = [pair for pair, good in zip(new, passed, strict=True) if good]
        for pair in accepted:
            self._tally(pair).accepted += 1
        return accepted

    def _is_new(self, pair: Pair) -> bool:
        tally, known = self._tally(pair), pair.clean in self.seen
        tally.candidates += 1
        tally.repeated += known
        self.seen.add(pair.clean)
        return not known

    def _tally(self, pair: Pair) -> Tally:
        return self.tallies.setdefault((self.split, pair.group), Tally())

    def _short(self, kept: Sequence[Pair], count: int) -> None:
        tallies = [tally for (split, _), tally in self.tallies.items() if split == self.split]
        candidates, repeated = (
            sum(getattr(t, n) for t in tallies) for n in ("candidates", "repeated")
        )
        found = (
            f"task {self.builder.task}: {len(kept)} of {count} wanted {self.split} prompts; of {candidates} candidates "
            f"{repeated} repeated an earlier one, {sum(t.accepted for t in tallies)} passed filter: {self.plan.filter}"
        )
        way_out = "use a weaker filter, more max_candidates or a task that this model can do"
        if not kept:
            raise UserError(f"{found}; {way_out}")
        logger.warning("%s; balance over families may be lost; to get all, %s", found, way_out)


def _quotas(cells: Sequence[str], count: int) -> Counter[str]:
    """Share a number of prompts among cells in the order of their first occurrence."""
    names = list(dict.fromkeys(cells))
    base, rest = divmod(count, len(names))
    return Counter({name: base + (index < rest) for index, name in enumerate(names)})
