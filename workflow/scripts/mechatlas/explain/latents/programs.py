"""Programs of latents: explanations that can be executed and predict an activation on every token.

A program is made of a few parts; where several apply, the largest value counts, and where none does the activation is
0. A part is a rule (a value wherever some conditions hold together), a look-up (a value for each token, this one or one
before it), or n-grams (a value for each context, the most specific known context deciding; see `NGrams`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mechatlas.explain.latents.conditions import (
    MAX_BACK,
    AnyCondition,
    Condition,
    either,
    shifted,
)
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.io import UserError

Value = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0)]
_BEFORE = {1: "after", 2: "two tokens after"}


class LatentForm(BaseModel):
    """Base of the parts of a program: strict about its parameters, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def predict(self, view: TokenView) -> np.ndarray:
        """Predict activations: float32 [W, T]."""
        raise TypeError(f"{type(self).__name__} predicts nothing")

    def english(self, vocabulary: Vocabulary) -> str:
        """Return where the latent is active, as it reads after "active on"."""
        raise TypeError(f"{type(self).__name__} has no English rendering")

    @property
    def size(self) -> float:
        """How much there is to say: what a simpler program has less of."""
        raise TypeError(f"{type(self).__name__} has no size")


class Rule(LatentForm):
    """One value wherever all conditions hold."""

    form: Literal["rule"] = "rule"
    conditions: tuple[AnyCondition, ...] = Field(min_length=1, max_length=4)
    value: Value

    def mask(self, view: TokenView) -> np.ndarray:
        """Return where the rule applies: bool [W, T]."""
        return np.logical_and.reduce([condition.mask(view) for condition in self.conditions])

    def predict(self, view: TokenView) -> np.ndarray:
        return self.mask(view).astype(np.float32) * np.float32(self.value)

    def english(self, vocabulary: Vocabulary) -> str:
        by_back: dict[int, list[Condition]] = {}
        for condition in sorted(self.conditions, key=lambda c: c.back):
            by_back.setdefault(condition.back, []).append(condition)
        here = [c.english(vocabulary) for c in by_back.pop(0, [])]
        text = " that are ".join(here) if here else "tokens"
        for back, conditions in by_back.items():
            words = " that are ".join(c.english(vocabulary) for c in conditions)
            text += f" {_BEFORE.get(back, f'{back} tokens after')} {words}"
        return text

    @property
    def size(self) -> float:
        entries = (len(c.tokens) for c in self.conditions if c.on == "tokens")
        return len(self.conditions) + sum(entries) / 4


class Lookup(LatentForm):
    """A value for each token ``back`` places before, ``otherwise`` for others."""

    form: Literal["lookup"] = "lookup"
    back: int = Field(0, ge=0, le=MAX_BACK)
    tokens: tuple[Token, ...] = Field(min_length=1)
    values: tuple[Value, ...]
    otherwise: Value = 0.0

    def predict(self, view: TokenView) -> np.ndarray:
        table = np.full(len(view.vocabulary), self.otherwise, dtype=np.float32)
        kept = [(t, v) for t, v in zip(self.tokens, self.values, strict=True) if t < len(table)]
        table[[token for token, _ in kept]] = [value for _, value in kept]
        table[view.vocabulary.bos_id] = 0 if self.back == 0 else self.otherwise
        tokens = shifted(view.tokens, self.back)
        return np.where(tokens >= 0, table[tokens], np.float32(self.otherwise)).astype(np.float32)

    def english(self, vocabulary: Vocabulary) -> str:
        order = sorted(range(len(self.tokens)), key=lambda i: (-self.values[i], self.tokens[i]))
        top = self.values[order[0]]
        strong = [i for i in order if self.values[i] >= 0.5 * top]
        words = either([vocabulary.show(self.tokens[i]) for i in strong])
        weak = len(order) - len(strong)
        text = (
            words
            if self.back == 0
            else f"tokens {_BEFORE.get(self.back, f'{self.back} tokens after')} {words}"
        )
        return text + (f", weakly on {weak} others" if weak else "")

    @property
    def size(self) -> float:
        return 2 + len(self.tokens) / 8


class NGrams(LatentForm):
    """A value for each known context of up to four tokens; a context may leave tokens open.

    A context names the tokens at some distances back, nearest first; ``None`` is any token. Of the known contexts that
    fit a place the one in the most specific group decides: ``groups`` lists distances from the least to the most
    specific, so that a context that is not known falls back to the next less specific one (backtracking, which the
    n-gram explainer of Foote et al. 2023 lacks where an exact branch leads to nothing).
    """

    form: Literal["ngrams"] = "ngrams"
    groups: tuple[tuple[Annotated[int, Field(ge=0, le=3)], ...], ...] = Field(min_length=1)
    contexts: tuple[tuple[Token | None, ...], ...]
    values: tuple[Value, ...]
    otherwise: Value = 0.0

    def predict(self, view: TokenView) -> np.ndarray:
        predicted = np.full(view.shape, self.otherwise, dtype=np.float32)
        for group in self.groups:
            mine = [
                (tuple(context[back] for back in group), value)
                for context, value in zip(self.contexts, self.values, strict=True)
                if tuple(b for b, token in enumerate(context) if token is not None) == group
            ]
            if not mine:
                continue
            codes = context_codes(view, group)
            size = len(view.vocabulary)
            known = np.array([_code(tokens, size) for tokens, _ in mine])
            order = np.argsort(known)
            values = np.array([value for _, value in mine], dtype=np.float32)[order]
            known = known[order]
            place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            predicted = np.where(known[place] == codes, values[place], predicted)
        predicted[:, 0] = 0
        return predicted

    def english(self, vocabulary: Vocabulary) -> str:
        order = sorted(range(len(self.values)), key=lambda i: (-self.values[i], i))
        strong = [i for i in order if self.values[i] >= 0.5 * self.values[order[0]]]
        ends = [self._words(i, vocabulary) for i in strong if self.contexts[i][0] is not None]
        before = [self._words(i, vocabulary) for i in strong if self.contexts[i][0] is None]
        parts = [f"the end of {either(ends)}"] if ends else []
        parts += [f"the token after {either(before)}"] if before else []
        weak = len(order) - len(strong)
        text = ", and on ".join(parts)
        return text + (f", weakly after {weak} other contexts" if weak else "")

    def _words(self, place: int, vocabulary: Vocabulary) -> str:
        context = [token for token in self.contexts[place]]
        while context[0] is None:
            context = context[1:]
        texts = ["…" if t is None else vocabulary.show(t)[1:-1] for t in context[::-1]]
        return "'" + "".join(texts) + "'"

    @property
    def size(self) -> float:
        return 4 + len(self.contexts) / 8


AnyForm = Annotated[Rule | Lookup | NGrams, Field(discriminator="form")]


class LatentProgram(BaseModel):
    """An executable explanation of one latent.

    Attributes
    ----------
    parts : tuple
        Possibly empty: never active then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[AnyForm, ...] = Field(max_length=8)

    def predict(self, view: TokenView) -> np.ndarray:
        """Predict activations: float32 [W, T], 0 at BOS."""
        predicted = np.zeros(view.shape, dtype=np.float32)
        for part in self.parts:
            np.maximum(predicted, part.predict(view), out=predicted)
        predicted[:, 0] = 0
        return predicted

    @property
    def size(self) -> float:
        """How much there is to say, summed over the parts."""
        return sum(part.size for part in self.parts)

    def english(self, vocabulary: Vocabulary) -> str:
        """Return the program as a sentence."""
        if not self.parts:
            return "Never active."
        parts = sorted(self.parts, key=lambda part: -getattr(part, "value", 0))
        return f"Active on {'; and on '.join(part.english(vocabulary) for part in parts)}."

    def to_json(self) -> dict[str, Any]:
        """Return the program as plain data."""
        return self.model_dump(mode="json")


def parse_latent_program(data: Any) -> LatentProgram:
    """Build a program of a latent from plain data.

    Raises
    ------
    UserError
        If the data are not a program; the message names the first offending field.
    """
    try:
        return LatentProgram.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "program"
        raise UserError(
            f"not a valid program of a latent: {where}: {first['msg']} (see docs/latents.md for the forms)"
        ) from error


def context_codes(view: TokenView, group: tuple[int, ...]) -> np.ndarray:
    """Return a number for the tokens at some distances back, equal for equal ones, -1 where one is missing."""
    parts = [shifted(view.tokens, back) for back in group]
    codes = np.zeros(view.shape, dtype=np.int64)
    for tokens in parts:
        codes = codes * len(view.vocabulary) + tokens
    return np.where(np.logical_and.reduce([tokens >= 0 for tokens in parts]), codes, -1)


def _code(tokens: tuple[int, ...], size: int) -> int:
    code = 0
    for token in tokens:
        code = code * size + token
    return code
