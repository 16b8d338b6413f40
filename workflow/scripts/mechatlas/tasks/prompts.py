"""Prompts built token by token: what a task hands to every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mechatlas.corpus.templates import Pieces, text_of
from mechatlas.io import UserError

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, without special tokens."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one task with their answers.

    Attributes
    ----------
    task : str
        Name of the task, such as ``ioi``.
    tokens : numpy.ndarray
        [N, T] int64, BOS first, padded on the right with BOS where prompts differ in length.
    lengths : numpy.ndarray
        [N] int64, tokens of each prompt, BOS included.
    answers, wrong : numpy.ndarray
        [N] int64, the token that should follow and the one it is compared with.
    roles : mapping of str to numpy.ndarray
        Role to [N] int64 positions (-1 where a prompt lacks the role); ``end`` is the last token.
    groups : tuple of str
        [N] labels by which results are broken down, such as ``months/done/3``.
    choices : numpy.ndarray, optional
        [K] int64 tokens that compete, for tasks with many right answers.
    correct : numpy.ndarray, optional
        [N, K] bool, which choices are right.
    """

    task: str
    tokens: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    wrong: np.ndarray
    roles: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    choices: np.ndarray | None = None
    correct: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> np.ndarray:
        """[N] int64, the position from which the answer is predicted."""
        return self.lengths - 1


@dataclass(frozen=True)
class Prompt:
    """One prompt before batching: token ids (BOS first), role positions, answer, wrong answer, group."""

    tokens: tuple[int, ...]
    roles: Mapping[str, int]
    answer: int
    wrong: int
    group: str = ""


def single_token(word: str, encode: Encode, what: str) -> int:
    """Return the id of a word that has to be one token.

    Raises
    ------
    UserError
        If the tokenizer splits it.
    """
    ids = list(encode(word))
    if len(ids) != 1:
        raise UserError(
            f"{what}: {word!r} is {len(ids)} tokens in this model's tokenizer; "
            "leave the word out or use a model in which it is one token"
        )
    return int(ids[0])


def encode_pieces(
    pieces: Pieces, encode: Encode, bos: int
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Turn pieces into tokens and role positions.

    Parameters
    ----------
    pieces : list of (str, str)
        Texts with roles, see `mechatlas.corpus.templates.fill`.
    encode : callable
    bos : int
        Put in front.

    Returns
    -------
    tuple
        Token ids, and for each role the position of the last token of its piece.

    Raises
    ------
    UserError
        If the tokenizer joins text across pieces, so that roles would have no position.
    """
    tokens = [bos]
    roles: dict[str, int] = {}
    for text, role in pieces:
        tokens.extend(int(i) for i in encode(text))
        if role:
            roles[role] = len(tokens) - 1
    if tokens[1:] != [int(i) for i in encode(text_of(pieces))]:
        raise UserError(
            f"task: the tokenizer joins parts of the prompt {text_of(pieces)!r}; "
            "use a tokenizer that splits at blanks and punctuation"
        )
    return tuple(tokens), roles


def led_by_blank(pieces: Pieces) -> Pieces:
    """Put a blank before the first piece, so that its first word is the token it is elsewhere in the text."""
    (text, role), *rest = pieces
    return [(" " + text, role), *rest]


def batch_of(task: str, prompts: Sequence[Prompt]) -> PromptBatch:
    """Stack prompts, padding on the right with their first token (BOS).

    Raises
    ------
    UserError
        If there are none.
    """
    if not prompts:
        raise UserError(f"{task}: no prompts; ask for at least one")
    lengths = np.array([len(p.tokens) for p in prompts], dtype=np.int64)
    tokens = np.full((len(prompts), lengths.max()), prompts[0].tokens[0], dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    names = sorted({role for p in prompts for role in p.roles})
    roles = {n: np.array([p.roles.get(n, -1) for p in prompts], dtype=np.int64) for n in names}
    return PromptBatch(
        task=task,
        tokens=tokens,
        lengths=lengths,
        answers=np.array([p.answer for p in prompts], dtype=np.int64),
        wrong=np.array([p.wrong for p in prompts], dtype=np.int64),
        roles={**roles, "end": lengths - 1},
        groups=tuple(p.group for p in prompts),
    )
