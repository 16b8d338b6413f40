"""Excerpts: how a place where a unit is active is shown to a language model.

An excerpt is a short list of JSON values, so that what is marked is marked by its place in the list and no text of the
corpus can forge a mark:

- a head's (query, key) pair: ``[text before the key, key token, text between, query token]``. Nothing after the query
  is shown, as the model had not seen it. Where query and key are the same token, the text between is null.
- one place of a head (its query) or of a latent: ``[text before, token]``; a latent may also see ``text after``.

A long text between is shortened to ``[its beginning, number of tokens left out, its end]``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

#: A piece of an excerpt: text, nothing at all, or a shortened text.
Piece = str | None | tuple[str, int, str]


@dataclass(frozen=True)
class UnitKind:
    """The words that prompts use for a kind of unit.

    Attributes
    ----------
    name : str
        "head" or "latent".
    noun : str
        What the unit is.
    active : str
        What it does where it is active, as in "the unit ...".
    layout : str
        What the elements of a marked excerpt are.
    place_layout : str
        What the elements of an excerpt with a single place are.
    marks : tuple of int
        Elements of a marked excerpt that hold marked tokens.
    """

    name: str
    noun: str
    active: str
    layout: str
    place_layout: str
    marks: tuple[int, ...]


HEAD = UnitKind(
    name="head",
    noun="attention head",
    active="looks back from a QUERY token to an earlier KEY token",
    layout="[text before the KEY, KEY token, text between, QUERY token]",
    place_layout="[text before the QUERY, QUERY token]",
    marks=(1, 3),
)
LATENT = UnitKind(
    name="latent",
    noun="dictionary latent",
    active="is active at a TOKEN",
    layout="[text before, TOKEN, text after]",
    place_layout="[text before, TOKEN]",
    marks=(1,),
)
GAP = "A text between may be null (QUERY and KEY are the same token) or [beginning, number of tokens left out, end]."


@dataclass(frozen=True)
class Example:
    """One place in the corpus, as it is shown, with what is known about it.

    Attributes
    ----------
    item : str
        Name that is unique among the examples of a unit.
    pieces : tuple
        The excerpt; see `Piece`.
    marks : tuple of int
        Which pieces are marked tokens.
    strength : float
        How active the unit is: attention, or activation relative to the unit's largest.
    label : bool
        Whether it counts as active.
    doc : str
        Document that it comes from.
    window : int
    place : tuple of int
        Positions in the window: (query, key) of a head, (token,) of a latent.
    role : str
        How the example was drawn, such as "top" or "negative_same_key".
    """

    item: str
    pieces: tuple[Piece, ...]
    marks: tuple[int, ...]
    strength: float
    label: bool
    doc: str
    window: int
    place: tuple[int, ...]
    role: str = ""

    @property
    def values(self) -> list[Any]:
        """The excerpt as plain JSON values."""
        return plain(self.pieces)


def plain(pieces: Sequence[Piece]) -> list[Any]:
    """Return pieces as plain JSON values (tuples become lists)."""
    return [list(piece) if isinstance(piece, tuple) else piece for piece in pieces]


def pieces_to_json(pieces: Sequence[Piece]) -> str:
    """Return pieces as JSON in ASCII, fit for a column of a table whatever the corpus holds."""
    return json.dumps(plain(pieces), separators=(",", ":"))


def pieces_from_json(text: str) -> tuple[Piece, ...]:
    """Undo `pieces_to_json`."""
    return tuple(tuple(piece) if isinstance(piece, list) else piece for piece in json.loads(text))


class Texts(Protocol):
    """What excerpts need of a tokenizer (`mechatlas.models.tokenizer.Tokenizer` has it)."""

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Return each token's own text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of consecutive tokens."""
        ...


class Excerpts:
    """Cuts excerpts from windows.

    Parameters
    ----------
    texts : Texts
        The tokenizer.
    context_tokens : int
        Tokens of text before a marked token. A third of that is shown after a key or a latent's token.
    """

    def __init__(self, texts: Texts, context_tokens: int) -> None:
        self.texts = texts
        self.before = context_tokens
        self.after = max(1, context_tokens // 3)

    def pair(self, tokens: np.ndarray, query: int, key: int) -> tuple[Piece, ...]:
        """Return the excerpt of a (query, key) pair of a head.

        Parameters
        ----------
        tokens : int [T]
            The window, BOS at position 0 (which is never shown).
        query, key : int
            Positions, 1 <= key <= query.
        """
        first = self._text(tokens, key - self.before, key)
        if key == query:
            token = self.token(tokens, key)
            return (first, token, None, token)
        return (
            first,
            self.token(tokens, key),
            self._between(tokens, key + 1, query),
            self.token(tokens, query),
        )

    def place(self, tokens: np.ndarray, at: int, *, after: bool = False) -> tuple[Piece, ...]:
        """Return the excerpt of one place: the query of a head, or (with ``after``) a latent's token."""
        pieces = (self._text(tokens, at - self.before, at), self.token(tokens, at))
        return (*pieces, self._text(tokens, at + 1, at + 1 + self.after)) if after else pieces

    def token(self, tokens: np.ndarray, at: int) -> str:
        """Return the text of one token."""
        return self.texts.strings(tokens[at : at + 1])[0]

    def tokens(self, tokens: np.ndarray, start: int, stop: int) -> list[str]:
        """Return each token's own text in a stretch of a window."""
        return self.texts.strings(tokens[max(1, start) : max(1, stop)])

    def _between(self, tokens: np.ndarray, start: int, stop: int) -> Piece:
        kept = self.after + self.before
        # A gap element costs about as much as the few tokens that it would stand for.
        if stop - start <= kept + 4:
            return self._text(tokens, start, stop)
        left, right = start + self.after, stop - self.before
        return (self._text(tokens, start, left), right - left, self._text(tokens, right, stop))

    def _text(self, tokens: np.ndarray, start: int, stop: int) -> str:
        ids = [int(i) for i in tokens[max(1, start) : max(1, stop)]]
        strings = self.texts.strings(ids)
        text = "".join(strings)
        if "\ufffd" in text:
            # A character may be made of several tokens, none of which is text by itself.
            space = " " if strings[0].startswith(" ") else ""
            text = space + self.texts.decode(ids).removeprefix(space)
        return text
