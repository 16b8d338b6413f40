"""What programs may know about tokens: their text, their classes, and where they stand in a window."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from mechatlas.corpus import lexicon

Value = TypeVar("Value")

OPENERS = {"(": "round", "[": "square", "{": "curly", "<": "angle", "“": "double", "«": "guillemet"}
CLOSERS = {")": "round", "]": "square", "}": "curly", ">": "angle", "”": "double", "»": "guillemet"}
# The straight quotation mark opens and closes; the second one in a line closes the first.
TOGGLES = {'"': "straight"}
SENTENCE_ENDS = frozenset(".?!")
DELIMITERS = frozenset(".,;:?!\n")

_MEMBERS = {
    "month": frozenset(lexicon.MONTHS),
    "weekday": frozenset(lexicon.DAYS),
    "number word": frozenset(lexicon.NUMBER_WORDS),
}
_NAMES = frozenset(lexicon.NAMES) | frozenset(lexicon.HELD_OUT_NAMES)
_FUNCTION_WORDS = {
    "article": frozenset("a an the this that these those its his her their our my".split()),
    "preposition": frozenset(
        "of in on at to from by with for about into over under between after before near as than".split()
    ),
    "conjunction": frozenset("and or but nor so yet while when because if then".split()),
    "pronoun": frozenset("i you he she it we they him them us me who which what".split()),
    "auxiliary": frozenset(
        "is are was were be been being has have had do does did will would can could".split()
    ),
}


def classify(text: str) -> str:
    """Return the one class that a token belongs to.

    Parameters
    ----------
    text : str
        The token's own text, with its leading space if it has one.

    Returns
    -------
    str
        One of `CLASSES`. The first rule that fits decides, so the classes partition the vocabulary.
    """
    word = text.strip(" ")
    if not word.strip():
        return "newline" if "\n" in text else "space"
    if len(word) == 1:
        for name, table in (("opener", OPENERS), ("closer", CLOSERS), ("quote", TOGGLES)):
            if word in table:
                return name
    if not any(c.isalnum() for c in word):
        if word[-1] in SENTENCE_ENDS:
            return "sentence end"
        return "comma or colon" if word[-1] in ",;:" else "other punctuation"
    if re.fullmatch(r"\d+", word):
        return "numeral"
    return _word_class(text, word)


def _word_class(text: str, word: str) -> str:
    for name, members in _MEMBERS.items():
        if word in members:
            return name
    if word in _NAMES:
        return "name"
    for name, members in _FUNCTION_WORDS.items():
        if word.lower() in members:
            return name
    starts_word = text[0] in " \n" or word[0].isupper()
    if not starts_word:
        return "word piece"
    if len(word) == 1:
        return "single letter"
    return "capitalised word" if word[0].isupper() else "word"


CLASSES = (
    "BOS",
    "newline",
    "space",
    "opener",
    "closer",
    "quote",
    "sentence end",
    "comma or colon",
    "other punctuation",
    "numeral",
    *_MEMBERS,
    "name",
    *_FUNCTION_WORDS,
    "word piece",
    "single letter",
    "capitalised word",
    "word",
)
CLASS_INDEX = {name: index for index, name in enumerate(CLASSES)}


class Vocabulary:
    """Token texts and what follows from them, indexed by token id.

    Parameters
    ----------
    texts : sequence of str
        Text of every token, in the order of the ids.
    bos_id : int
        The token at the first position of every window, its sink.
    """

    def __init__(self, texts: Sequence[str], bos_id: int) -> None:
        self.texts = list(texts)
        self.bos_id = bos_id

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def classes(self) -> np.ndarray:
        """Index into `CLASSES` per token: int64 [V]."""
        indices = np.array([CLASS_INDEX[classify(text)] for text in self.texts], dtype=np.int64)
        indices[self.bos_id] = CLASS_INDEX["BOS"]
        return indices

    @cached_property
    def words(self) -> np.ndarray:
        """An id shared by tokens that are the same word but for case and leading space: int64 [V]."""
        ids: dict[str, int] = {}
        folded = (text.strip(" ").casefold() or text for text in self.texts)
        return np.array([ids.setdefault(word, len(ids)) for word in folded], dtype=np.int64)

    @cached_property
    def delimiters(self) -> np.ndarray:
        """Whether a token ends with a delimiter, a newline included: bool [V]."""
        return np.array([bool(t) and t[-1] in DELIMITERS for t in self.texts])

    @cached_property
    def newlines(self) -> np.ndarray:
        """Whether a token ends a line: bool [V]."""
        return np.array([t.endswith("\n") for t in self.texts])

    @cached_property
    def sentence_ends(self) -> np.ndarray:
        """Whether a token ends a sentence (., ?, ! or a line break): bool [V]."""
        return np.array([bool(t) and (t[-1] in SENTENCE_ENDS or t[-1] == "\n") for t in self.texts])

    @cached_property
    def brackets(self) -> np.ndarray:
        """Whether a token holds a bracket or quotation mark: bool [V]."""
        return np.array([not _BRACKETS.isdisjoint(text) for text in self.texts])

    @cached_property
    def steps(self) -> np.ndarray:
        """Place of a token in its sequence (numerals, number words, months, weekdays, letters).

        int64 [V]: 1000 x sequence + place, so that a difference of 1 is "the next member"; -1 outside any.
        """
        place: dict[str, int] = {}
        sequences = (
            lexicon.NUMBER_WORDS,
            lexicon.MONTHS,
            lexicon.DAYS,
            [chr(c) for c in range(ord("A"), ord("Z") + 1)],
        )
        for number, members in enumerate(sequences, 1):
            place |= {member: 1000 * number + index for index, member in enumerate(members)}
        place |= {str(n): n for n in range(1000)}
        return np.array([place.get(text.strip(" "), -1) for text in self.texts], dtype=np.int64)

    def show(self, token: int) -> str:
        """Return a token as it may stand in a sentence: in quotation marks, line breaks visible."""
        if token == self.bos_id:
            return "BOS"
        return "'" + self.texts[token].replace("\n", "\\n") + "'"


class TokenView:
    """Windows of tokens with the relations between positions that programs refer to.

    Parameters
    ----------
    tokens : int array [W, T]
        Windows of equal length, BOS at position 0.
    vocabulary : Vocabulary

    Attributes
    ----------
    tokens : int64 [W, T]
    vocabulary : Vocabulary
    """

    def __init__(self, tokens: np.ndarray, vocabulary: Vocabulary) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.vocabulary = vocabulary
        self._memo: dict[str, Any] = {}

    def memo(self, name: str, compute: Callable[[TokenView], Value]) -> Value:
        """Return ``compute(self)``, computed once per name; many programs share a view."""
        if name not in self._memo:
            self._memo[name] = compute(self)
        return self._memo[name]

    def first(self, windows: int) -> TokenView:
        """Return the view of the first windows, the same one for all who ask."""
        return self.memo(
            f"first {windows}", lambda view: TokenView(view.tokens[:windows], view.vocabulary)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of windows and their length."""
        return self.tokens.shape  # type: ignore[return-value]

    @cached_property
    def earlier(self) -> np.ndarray:
        """bool [T, T], query by key: key before query and not BOS."""
        length = self.shape[1]
        mask = np.tril(np.ones((length, length), dtype=bool), -1)
        mask[:, 0] = False
        return mask

    @cached_property
    def same_token(self) -> np.ndarray:
        """bool [W, T, T]: the key is an earlier copy of the query's token."""
        return (self.tokens[:, :, None] == self.tokens[:, None, :]) & self.earlier

    @cached_property
    def same_word(self) -> np.ndarray:
        """bool [W, T, T]: the key is the query's word in another spelling (case or leading space)."""
        words = self.vocabulary.words[self.tokens]
        return (words[:, :, None] == words[:, None, :]) & self.earlier & ~self.same_token

    @cached_property
    def classes(self) -> np.ndarray:
        """Class index per position: int64 [W, T]."""
        return self.vocabulary.classes[self.tokens]

    @cached_property
    def steps(self) -> np.ndarray:
        """Place in a sequence per position (see `Vocabulary.steps`): int64 [W, T]."""
        return self.vocabulary.steps[self.tokens]

    @cached_property
    def line_starts(self) -> np.ndarray:
        """Position of the first token of the query's line: int64 [W, T]."""
        return self._starts(self.vocabulary.newlines)

    @cached_property
    def sentence_starts(self) -> np.ndarray:
        """Position of the first token of the query's sentence: int64 [W, T]."""
        return self._starts(self.vocabulary.sentence_ends)

    def _starts(self, ends: np.ndarray) -> np.ndarray:
        position = np.arange(self.shape[1])
        after_end = np.zeros(self.shape, dtype=bool)
        after_end[:, 1:] = ends[self.tokens[:, :-1]]
        after_end[:, 1] = True
        return np.maximum.accumulate(np.where(after_end, position, 0), axis=1)

    @cached_property
    def open_brackets(self) -> np.ndarray:
        """Position of the innermost bracket or quotation mark still open before the query, 0 if none.

        int64 [W, T]. For a closing token this is the opener that it closes.
        """
        texts, brackets = self.vocabulary.texts, self.vocabulary.brackets
        result = np.zeros(self.shape, dtype=np.int64)
        for window, row in enumerate(self.tokens):
            stack: list[tuple[str, int]] = []
            last = 0
            for position in np.flatnonzero(brackets[row]):
                result[window, last : position + 1] = stack[-1][1] if stack else 0
                _update_stack(stack, texts[row[position]].strip(" "), int(position))
                last = position + 1
            result[window, last:] = stack[-1][1] if stack else 0
        return result


_BRACKETS = {*OPENERS, *CLOSERS, *TOGGLES}


def _update_stack(stack: list[tuple[str, int]], text: str, position: int) -> None:
    for character in text:
        kind = CLOSERS.get(character) or TOGGLES.get(character)
        open_kinds = [k for k, _ in stack]
        if kind is not None and kind in open_kinds:
            # An unclosed inner bracket ends with the outer one.
            del stack[len(open_kinds) - 1 - open_kinds[::-1].index(kind) :]
        elif character in OPENERS or character in TOGGLES:
            stack.append((OPENERS.get(character) or TOGGLES[character], position))
