"""Clean and corrupted prompts in row pairs: what a task hands to the methods that compare two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from mechatlas.io import UserError

SPLITS = ("discovery", "held_out")


@dataclass(frozen=True)
class Pair:
    """One clean prompt, its corrupted partner and what should follow the clean one.

    Attributes
    ----------
    clean, corrupted : tuple of int
        Token ids of equal number, BOS included if the task wants one.
    answer, wrong : int
        The token that should follow the clean prompt and the one it is compared with.
    roles : mapping of str to int
        Role to position, the same in both prompts.
    group : str
        The family, by which results are broken down.
    cell : str
        What prompts are balanced over, such as family and start; the group if empty.
    split : {"discovery", "held_out"}
    text, corrupted_text, answer_text, wrong_text : str
        For people.
    fillers : tuple of str
        The words drawn for this prompt; no word is drawn in both splits.
    corrupted_answer : int
        The token that would be right after the corrupted prompt, -1 if none would or several would alike.
    choices, correct : tuple, optional
        Competing tokens and which of them are right, for tasks with many right answers.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    wrong: int
    roles: Mapping[str, int]
    group: str
    cell: str = ""
    split: str = "discovery"
    text: str = ""
    corrupted_text: str = ""
    answer_text: str = ""
    wrong_text: str = ""
    fillers: tuple[str, ...] = ()
    corrupted_answer: int = -1
    choices: tuple[int, ...] = ()
    correct: tuple[bool, ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """Prompts of one task, all of the same length and without padding.

    Attributes
    ----------
    task : str
        Name of the task in the config.
    clean, corrupted : numpy.ndarray
        [N, T] int64; row i of one belongs to row i of the other. BOS is in column 0 if ``bos``.
    answers, wrong : numpy.ndarray
        [N] int64, the answer of the clean prompt and the token it is compared with.
    roles : mapping of str to numpy.ndarray
        Role to [N] int64 positions, -1 where a prompt lacks the role; ``end`` is always there and is T - 1.
    groups : tuple of str
        [N] families.
    split : tuple of str
        [N] ``discovery`` or ``held_out``.
    bos : bool
        Whether the prompts begin with BOS.
    cells, text, corrupted_text, answer_text, wrong_text, fillers : tuple
        [N], see `Pair`.
    corrupted_answers : numpy.ndarray
        [N] int64, see `Pair`.
    choices : numpy.ndarray, optional
        [K] int64 tokens that compete, for tasks with many right answers.
    correct : numpy.ndarray, optional
        [N, K] bool, which choices are right.

    Raises
    ------
    ValueError
        If shapes or lengths disagree.
    """

    task: str
    clean: np.ndarray
    corrupted: np.ndarray
    answers: np.ndarray
    wrong: np.ndarray
    roles: Mapping[str, np.ndarray]
    groups: tuple[str, ...]
    split: tuple[str, ...]
    bos: bool
    cells: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    corrupted_text: tuple[str, ...] = ()
    answer_text: tuple[str, ...] = ()
    wrong_text: tuple[str, ...] = ()
    fillers: tuple[tuple[str, ...], ...] = ()
    corrupted_answers: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    choices: np.ndarray | None = None
    correct: np.ndarray | None = None

    def __post_init__(self) -> None:
        count, length = self.clean.shape
        if self.corrupted.shape != (count, length):
            raise ValueError(
                f"clean {self.clean.shape} and corrupted {self.corrupted.shape} differ"
            )
        for name, value in self._rows().items():
            if len(value) != count:
                raise ValueError(f"{name} has {len(value)} rows, clean has {count}")
        if "end" not in self.roles or (self.roles["end"] != length - 1).any():
            raise ValueError("the role end must be the last position of every prompt")

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def length(self) -> int:
        """T, the number of tokens of every prompt."""
        return self.clean.shape[1]

    def select(self, rows: np.ndarray | Sequence[int] | Sequence[bool]) -> PairBatch:
        """Return the rows of a boolean mask [N], or those of an array of indices in its order."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        taken = {
            name: value[index] if isinstance(value, np.ndarray) else tuple(value[i] for i in index)
            for name, value in self._rows().items()
            if not name.startswith("roles.")
        }
        roles = {role: positions[index] for role, positions in self.roles.items()}
        return PairBatch(task=self.task, roles=roles, bos=self.bos, choices=self.choices, **taken)

    def of_split(self, split: str) -> PairBatch:
        """Return the prompts of a split.

        Raises
        ------
        UserError
            If there are none.
        """
        chosen = np.array([name == split for name in self.split], dtype=bool)
        if not chosen.any():
            key = "held_out" if split == "held_out" else "prompts"
            raise UserError(
                f"task {self.task}: no prompts in the split {split!r}; set tasks.{self.task}.{key} above 0"
            )
        return self.select(chosen)

    def _rows(self) -> dict[str, np.ndarray | tuple]:
        """Return every field with one entry per prompt that is present."""
        single = ("task", "bos", "choices", "roles")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in single}
        present = {n: v for n, v in values.items() if v is not None and len(v)}
        required = ("answers", "wrong", "groups", "split")
        present |= {name: values[name] for name in required}
        return present | {f"roles.{role}": positions for role, positions in self.roles.items()}


def stack_pairs(task: str, pairs: Sequence[Pair], bos: bool) -> PairBatch:
    """Stack pairs into a batch.

    Raises
    ------
    UserError
        If there are none, or their prompts differ in length.
    """
    if not pairs:
        raise UserError(f"task {task}: no prompts; ask for at least one")
    _check_lengths(task, pairs)

    def integers(name: str) -> np.ndarray:
        return np.array([getattr(pair, name) for pair in pairs], dtype=np.int64)

    def texts(name: str) -> tuple:
        return tuple(getattr(pair, name) for pair in pairs)

    length = len(pairs[0].clean)
    names = sorted({role for pair in pairs for role in pair.roles})
    roles = {n: np.array([p.roles.get(n, -1) for p in pairs], dtype=np.int64) for n in names}
    choices = pairs[0].choices
    return PairBatch(
        task=task,
        clean=integers("clean"),
        corrupted=integers("corrupted"),
        answers=integers("answer"),
        wrong=integers("wrong"),
        roles={**roles, "end": np.full(len(pairs), length - 1, dtype=np.int64)},
        groups=texts("group"),
        split=texts("split"),
        bos=bos,
        cells=tuple(pair.cell or pair.group for pair in pairs),
        text=texts("text"),
        corrupted_text=texts("corrupted_text"),
        answer_text=texts("answer_text"),
        wrong_text=texts("wrong_text"),
        fillers=texts("fillers"),
        corrupted_answers=integers("corrupted_answer"),
        choices=np.array(choices, dtype=np.int64) if choices else None,
        correct=np.array([pair.correct for pair in pairs], dtype=bool) if choices else None,
    )


def _check_lengths(task: str, pairs: Sequence[Pair]) -> None:
    first = pairs[0]
    for pair in pairs:
        for tokens, text in ((pair.clean, pair.text), (pair.corrupted, pair.corrupted_text)):
            if len(tokens) != len(first.clean):
                raise UserError(
                    f"task {task}: {text!r} has {len(tokens)} tokens, but {first.text!r} has "
                    f"{len(first.clean)}; use words with equally many tokens, so that all prompts are of one length"
                )
        if pair.choices != first.choices:
            raise UserError(
                f"task {task}: prompts differ in their choices; give every prompt the same ones"
            )
