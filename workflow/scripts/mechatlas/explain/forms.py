"""The forms of which a program is made: each names positions a head may attend to.

A form turns a `TokenView` into an affinity, an array [W, T, T] (window, query, key; float32, never negative) with
nothing on BOS or on keys after the query. A program divides each row by its sum. A row without any affinity means
that the form does not apply there; its share of attention then goes to the sink, as it does in trained
transformers (Xiao et al. 2023, arXiv 2309.17453).

The vocabulary of forms follows what has been found in attention heads: previous-token and induction heads (Elhage et
al. 2021; Olsson et al. 2022), duplicate-token heads (Wang et al. 2022), heads for delimiters, positions and brackets
(Clark et al. 2019, arXiv 1906.04341), successors (Gould et al. 2023).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mechatlas.explain.vocabulary import CLASS_INDEX, CLASSES, TokenView

Pick = Literal["all", "last", "first"]
_PICK_WORDS = {"all": "every", "last": "the latest", "first": "the first"}


class Form(BaseModel):
    """Base of all forms: strict about its parameters, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def affinity(self, view: TokenView) -> np.ndarray:
        """Return the affinity of each key for each query: float32 [W, T, T]."""
        raise TypeError(f"{type(self).__name__} has no affinity")

    def english(self) -> str:
        """Return what the form attends to, as the object of "attends to"."""
        raise TypeError(f"{type(self).__name__} has no English rendering")


class Itself(Form):
    """The query's own position."""

    form: Literal["self"] = "self"

    def affinity(self, view: TokenView) -> np.ndarray:
        return _at(np.broadcast_to(np.arange(view.shape[1]), view.shape))

    def english(self) -> str:
        return "the token itself"


class Previous(Form):
    """The token a fixed number of positions back."""

    form: Literal["previous"] = "previous"
    offset: int = Field(1, ge=1, le=64)

    def affinity(self, view: TokenView) -> np.ndarray:
        return _at(np.broadcast_to(np.arange(view.shape[1]) - self.offset, view.shape))

    def english(self) -> str:
        return (
            "the previous token" if self.offset == 1 else f"the token {self.offset} positions back"
        )


class Start(Form):
    """The first token of the query's line or sentence."""

    form: Literal["start"] = "start"
    of: Literal["line", "sentence"] = "line"

    def affinity(self, view: TokenView) -> np.ndarray:
        return _at(view.line_starts if self.of == "line" else view.sentence_starts)

    def english(self) -> str:
        return f"the first token of the {self.of}"


class Duplicate(Form):
    """Earlier copies of the query's token."""

    form: Literal["duplicate"] = "duplicate"
    pick: Pick = "all"

    def affinity(self, view: TokenView) -> np.ndarray:
        return _pick(view.same_token, self.pick)

    def english(self) -> str:
        return f"{_PICK_WORDS[self.pick]} earlier copy of the same token"


class SameWord(Form):
    """Earlier spellings of the query's word that differ in case or leading space."""

    form: Literal["same_word"] = "same_word"
    pick: Pick = "all"

    def affinity(self, view: TokenView) -> np.ndarray:
        return _pick(view.same_word, self.pick)

    def english(self) -> str:
        return f"{_PICK_WORDS[self.pick]} earlier copy of the same word in another spelling"


class Induction(Form):
    """The token beside an earlier occurrence of the current token or of the last few tokens.

    ``offset`` 1 is induction (the token after the occurrence), -1 the token before it.
    """

    form: Literal["induction"] = "induction"
    prefix: int = Field(1, ge=1, le=4)
    offset: Literal[1, -1] = 1
    pick: Pick = "all"

    def affinity(self, view: TokenView) -> np.ndarray:
        match = view.same_token
        for back in range(1, self.prefix):
            match = match & _moved(view.same_token, back, back)
        return _pick(_moved(match, 0, self.offset) & view.earlier, self.pick)

    def english(self) -> str:
        side = "after" if self.offset == 1 else "before"
        what = "the current token" if self.prefix == 1 else f"the last {self.prefix} tokens"
        text = f"the token {side} {_PICK_WORDS[self.pick]} earlier occurrence of {what}"
        return text + (" (induction)" if self.offset == 1 else "")


class Delimiter(Form):
    """The latest delimiter (., ; : ? ! or a line break), the query included."""

    form: Literal["delimiter"] = "delimiter"

    def affinity(self, view: TokenView) -> np.ndarray:
        keys = view.vocabulary.delimiters[view.tokens]
        position = np.arange(view.shape[1])
        return _at(np.maximum.accumulate(np.where(keys, position, 0), axis=1))

    def english(self) -> str:
        return "the latest delimiter"


class Opener(Form):
    """The innermost bracket or quotation mark that is still open (for a closer: the one that it closes)."""

    form: Literal["opener"] = "opener"

    def affinity(self, view: TokenView) -> np.ndarray:
        return _at(view.open_brackets)

    def english(self) -> str:
        return "the innermost open bracket or quotation mark"


class TokenClass(Form):
    """Earlier tokens of one class."""

    form: Literal["class"] = "class"
    name: Literal[CLASSES]  # type: ignore[valid-type]
    pick: Pick = "all"

    def affinity(self, view: TokenView) -> np.ndarray:
        keys = view.classes == CLASS_INDEX[self.name]
        return _pick(keys[:, None, :] & view.earlier, self.pick)

    def english(self) -> str:
        return f"{_PICK_WORDS[self.pick]} earlier {self.name}"


class SameClass(Form):
    """Earlier tokens of the query's own class."""

    form: Literal["same_class"] = "same_class"
    pick: Pick = "all"

    def affinity(self, view: TokenView) -> np.ndarray:
        same = view.classes[:, :, None] == view.classes[:, None, :]
        return _pick(same & view.earlier, self.pick)

    def english(self) -> str:
        return f"{_PICK_WORDS[self.pick]} earlier token of the same class"


class Member(Form):
    """Earlier members of the query's sequence (numerals, number words, months, weekdays, letters).

    ``step`` is how far the key stands from the query in the sequence, such as -1 for the previous member;
    None means any member.
    """

    form: Literal["member"] = "member"
    step: int | None = Field(None, ge=-12, le=12)
    pick: Pick = "all"

    def affinity(self, view: TokenView) -> np.ndarray:
        steps = view.steps
        inside = (steps >= 0)[:, :, None] & (steps >= 0)[:, None, :]
        difference = steps[:, None, :] - steps[:, :, None]
        if self.step is None:
            match = steps[:, None, :] // 1000 == steps[:, :, None] // 1000
        else:
            match = difference == self.step
        return _pick(inside & match & view.earlier, self.pick)

    def english(self) -> str:
        what = "a member of the same sequence"
        if self.step is not None:
            what = (
                f"the sequence member {abs(self.step)} {'before' if self.step < 0 else 'after'} it"
            )
        return f"{_PICK_WORDS[self.pick]} earlier occurrence of {what}"


class Distance(Form):
    """Keys weighted by their distance alone: ``weights[d]`` for the key d positions back."""

    form: Literal["distance"] = "distance"
    weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]

    def affinity(self, view: TokenView) -> np.ndarray:
        length = view.shape[1]
        table = np.zeros(max(length, len(self.weights)), dtype=np.float32)
        table[: len(self.weights)] = self.weights
        gap = np.subtract.outer(np.arange(length), np.arange(length))
        kernel = np.where(gap >= 0, table[np.abs(gap)], 0).astype(np.float32)
        kernel[:, 0] = 0
        return np.broadcast_to(kernel, (view.shape[0], length, length))

    def english(self) -> str:
        weights = np.asarray(self.weights)
        total = max(weights.sum(), 1e-12)
        mean = float((weights * np.arange(len(weights))).sum() / total)
        return f"nearby tokens by distance alone (mean distance {mean:.1f})"


class Uniform(Form):
    """All tokens up to the query alike."""

    form: Literal["uniform"] = "uniform"

    def affinity(self, view: TokenView) -> np.ndarray:
        length = view.shape[1]
        mask = np.tril(np.ones((length, length), dtype=np.float32))
        mask[:, 0] = 0
        return np.broadcast_to(mask, (view.shape[0], length, length))

    def english(self) -> str:
        return "all tokens alike"


def _at(positions: np.ndarray) -> np.ndarray:
    """One-hot affinity of key positions [W, T]; positions below 1 mean "does not apply"."""
    windows, length = positions.shape
    affinity = np.zeros((windows, length, length), dtype=np.float32)
    w, q = np.nonzero(positions > 0)
    affinity[w, q, positions[w, q]] = 1
    return affinity


def _pick(mask: np.ndarray, pick: Pick) -> np.ndarray:
    """Keep all, the last or the first of the marked keys of each row."""
    if pick == "all":
        return mask.astype(np.float32)
    if pick == "last":
        positions = mask.shape[-1] - 1 - mask[:, :, ::-1].argmax(-1)
    else:
        positions = mask.argmax(-1)
    return _at(np.where(mask.any(-1), positions, 0))


def _moved(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move the marks of [W, T, T] down by ``down`` queries and right by ``right`` keys."""
    length = mask.shape[-1]
    result = np.zeros_like(mask)
    source = slice(max(0, -right), length - max(0, right))
    target = slice(max(0, right), length - max(0, -right))
    result[:, down:, target] = mask[:, : length - down, source]
    return result
