"""Conditions on tokens and places, of which the rules of latents are made.

A condition looks at the token ``back`` places before the one where a latent may be active (0: that token itself). It
turns a `TokenView` into a mask, bool [W, T], that is never true where it would look before the window's beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mechatlas.explain.vocabulary import CLASS_INDEX, CLASSES, TokenView, Vocabulary

MAX_BACK = 8
#: Tokens that an English rendering names.
NAMED = 6
#: Regular expressions of a token's text, with their words; the fit tries these and endings that it finds.
REGEXES: dict[str, str] = {
    r"^ ": "tokens that begin a word",
    r"^[^\W\d_]": "tokens that continue a word",
    r"^ ?[A-Z][a-z]+$": "capitalised words",
    r"^ ?[A-Z]{2,}$": "words in capitals",
    r"^ ?[a-z]+$": "words in small letters",
    r"^ ?\d+$": "numerals",
    r"^ ?[12]\d{3}$": "years",
    r"^ ?\d$": "single digits",
    r"^ ?\w$": "single letters or digits",
    r"\w\w$": "words and parts of words",
    r"^ ?[^\w\s]+$": "punctuation",
    r"\n": "line breaks",
    r"^.{8,}$": "long tokens (eight characters or more)",
    r"ing$": "tokens that end in 'ing'",
    r"ed$": "tokens that end in 'ed'",
    r"ly$": "tokens that end in 'ly'",
    r"er$": "tokens that end in 'er'",
    r"tion$": "tokens that end in 'tion'",
    r"[^s]s$": "tokens that end in 's'",
}


class Condition(BaseModel):
    """Base of all conditions: strict about its parameters, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    back: int = Field(0, ge=0, le=MAX_BACK)

    def mask(self, view: TokenView) -> np.ndarray:
        """Return where the condition holds: bool [W, T]."""
        raise TypeError(f"{type(self).__name__} has no mask")

    def english(self, vocabulary: Vocabulary) -> str:
        """Return what the condition says of the token that it looks at, as a noun phrase."""
        raise TypeError(f"{type(self).__name__} has no English rendering")


class OneOf(Condition):
    """The token is one of some tokens."""

    on: Literal["tokens"] = "tokens"
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)

    def mask(self, view: TokenView) -> np.ndarray:
        known = np.zeros(len(view.vocabulary), dtype=bool)
        known[[token for token in self.tokens if token < len(known)]] = True
        return shifted(known[view.tokens], self.back)

    def english(self, vocabulary: Vocabulary) -> str:
        return either([vocabulary.show(token) for token in self.tokens])


class Matches(Condition):
    """The token's own text, with its leading space, matches a regular expression (anywhere, unless anchored)."""

    on: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=200)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return pattern

    def mask(self, view: TokenView) -> np.ndarray:
        return shifted(matching(view.vocabulary, self.pattern)[view.tokens], self.back)

    def english(self, vocabulary: Vocabulary) -> str:
        if self.pattern in REGEXES:
            return REGEXES[self.pattern]
        ending = re.fullmatch(r"((?:\w|\\?[' -])+)\$", self.pattern)
        if ending:
            return f"tokens that end in '{ending[1]}'"
        return f"tokens that match /{self.pattern}/"


class OfClass(Condition):
    """The token is of one of the classes that heads' programs know too."""

    on: Literal["class"] = "class"
    name: Literal[CLASSES]  # type: ignore[valid-type]

    def mask(self, view: TokenView) -> np.ndarray:
        return shifted(view.classes == CLASS_INDEX[self.name], self.back)

    def english(self, vocabulary: Vocabulary) -> str:
        return f"tokens of the class '{self.name}'"


class Near(Condition):
    """The token is among the first ``within`` of its sentence, its line or the window (BOS not counted)."""

    on: Literal["position"] = "position"
    start: Literal["sentence", "line", "window"] = "sentence"
    within: int = Field(1, ge=1, le=64)

    def mask(self, view: TokenView) -> np.ndarray:
        position = np.broadcast_to(np.arange(view.shape[1]), view.shape)
        starts = {"sentence": view.sentence_starts, "line": view.line_starts}.get(self.start, 1)
        mask = position - starts < self.within
        mask[:, 0] = False
        return shifted(mask, self.back)

    def english(self, vocabulary: Vocabulary) -> str:
        where = "text shown" if self.start == "window" else self.start
        first = "first token" if self.within == 1 else f"first {self.within} tokens"
        return f"the {first} of the {where}"


class Seen(Condition):
    """The token, or that word in another spelling, stood earlier in the window; with ``seen`` false, it did not."""

    on: Literal["seen"] = "seen"
    seen: bool = True

    def mask(self, view: TokenView) -> np.ndarray:
        before = view.memo("seen before", seen_before)
        mask = before if self.seen else ~before
        return shifted(mask & (np.arange(view.shape[1]) > 0), self.back)

    def english(self, vocabulary: Vocabulary) -> str:
        return f"words that {'occurred' if self.seen else 'did not occur'} earlier in the text"


AnyCondition = Annotated[OneOf | Matches | OfClass | Near | Seen, Field(discriminator="on")]


def shifted(values: np.ndarray, back: int) -> np.ndarray:
    """Return ``values [W, T]`` of the token ``back`` places before, false or -1 where there is none."""
    if back == 0:
        return values
    moved = np.zeros_like(values) if values.dtype == bool else np.full_like(values, -1)
    moved[:, back:] = values[:, :-back]
    return moved


def seen_before(view: TokenView) -> np.ndarray:
    """Return where a token's word stood earlier in the window, case and leading space apart: bool [W, T]."""
    words = view.vocabulary.words[view.tokens]
    seen = np.zeros(words.shape, dtype=bool)
    for row, line in zip(words, seen, strict=True):
        first = np.unique(row[1:], return_index=True)[1] + 1
        line[1:] = True
        line[first] = False
    return seen


@lru_cache(maxsize=512)
def _matching(texts: tuple[str, ...], bos: int, pattern: str) -> np.ndarray:
    search: Callable[[str], object] = re.compile(pattern).search
    found = np.array([search(text) is not None for text in texts])
    found[bos] = False
    return found


def matching(vocabulary: Vocabulary, pattern: str) -> np.ndarray:
    """Return which tokens of a vocabulary match a regular expression, BOS never: bool [V]."""
    return _matching(tuple(vocabulary.texts), vocabulary.bos_id, pattern)


def either(words: list[str]) -> str:
    """Join names with "or", the first few of them."""
    rest = len(words) - NAMED
    if rest > 1:
        return f"{', '.join(words[:NAMED])} or one of {rest} more tokens"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
