"""The learned form: a head's attention as a sum of look-ups.

Where no single rule fits, a head is described by tables. The score of a key for a query is the sum of

- an entry for the classes of the query, the token before it, the key and the token before the key,
- an entry for the key's own token and for the token before the key,
- a few factors: for each the product of a loading of the query's token and one of the key's token,
- an entry for the distance (in buckets that grow with it), apart for each octave of query positions,
- an entry for each relation that holds between the two positions (see `RELATIONS`);

BOS competes with a score of its own that depends on the query's token and class. A softmax turns the scores into the
attention row, so each entry is a log-odds that can be read on its own. The tables know tokens, positions and relations
only: what they cannot predict, the head does for another reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from mechatlas.explain.forms import (
    Delimiter,
    Duplicate,
    Form,
    Induction,
    Itself,
    Member,
    Opener,
    Previous,
    SameClass,
    SameWord,
    Start,
)
from mechatlas.explain.vocabulary import CLASSES, TokenView

RELATIONS: dict[str, Form] = {
    "self": Itself(),
    "previous": Previous(offset=1),
    "two back": Previous(offset=2),
    "three back": Previous(offset=3),
    "duplicate": Duplicate(),
    "latest duplicate": Duplicate(pick="last"),
    "induction": Induction(),
    "latest induction": Induction(pick="last"),
    "induction after two": Induction(prefix=2),
    "before duplicate": Induction(offset=-1),
    "same word": SameWord(),
    "same class": SameClass(),
    "latest of the same class": SameClass(pick="last"),
    "previous member": Member(step=-1),
    "member": Member(),
    "line start": Start(of="line"),
    "sentence start": Start(of="sentence"),
    "delimiter": Delimiter(),
    "opener": Opener(),
}
C = len(CLASSES)
Mark = Annotated[int, Field(ge=0, lt=2 * C)]  # a column of `class_marks`
TokenTable = tuple[tuple[int, float], ...]
FactorTable = tuple[tuple[int, tuple[float, ...]], ...]


def distance_buckets(length: int) -> np.ndarray:
    """Bucket of each distance 0 .. length-1: exact up to 8, then four per octave (int64 [length])."""
    distance = np.arange(length)
    coarse = 8 + np.floor(4 * np.log2(np.maximum(distance, 8) / 8)).astype(np.int64)
    return np.where(distance < 8, distance, coarse)


def position_octaves(length: int) -> np.ndarray:
    """Octave of each query position: 0 for 0 and 1, 1 for 2 and 3, 2 for 4 .. 7, and so on (int64 [length])."""
    return np.floor(np.log2(np.maximum(np.arange(length), 1))).astype(np.int64)


def relation_places(view: TokenView) -> list[np.ndarray]:
    """Return where each relation of a view holds: for each int64 [n], places in the flattened array [W, T, T]."""
    return [view.memo(f"where {name}", partial(_places, form)) for name, form in RELATIONS.items()]


def _places(form: Form, view: TokenView) -> np.ndarray:
    return np.flatnonzero(form.affinity(view))


def class_marks(view: TokenView) -> np.ndarray:
    """One-hot class of each position and, offset by C, of the one before it: float32 [W, T, 2C]."""
    marks = np.zeros((*view.shape, 2 * C), dtype=np.float32)
    here = np.eye(C, dtype=np.float32)[view.classes]
    marks[:, :, :C] = here
    marks[:, 1:, C:] = here[:, :-1]
    return marks


class Scores(Form):
    """Softmax over summed look-ups; see the module docstring. All entries are in nats of attention odds."""

    form: Literal["scores"] = "scores"
    sink_class: tuple[float, ...] = Field(min_length=2 * C, max_length=2 * C)
    sink_token: TokenTable = ()
    class_pair: tuple[tuple[Mark, Mark, float], ...] = ()
    key_token: TokenTable = ()
    token_before_key: TokenTable = ()
    query_factors: FactorTable = ()
    key_factors: FactorTable = ()
    distance: tuple[tuple[float, ...], ...] = Field(min_length=1)
    relations: dict[str, float] = {}

    @model_validator(mode="after")
    def _known(self) -> Scores:
        unknown = set(self.relations) - set(RELATIONS)
        if unknown:
            raise ValueError(f"unknown relations {sorted(unknown)}; known are {sorted(RELATIONS)}")
        return self

    def sharpened(self, gain: float) -> Scores:
        """Return the form with all scores multiplied by ``gain``: above 1 its rows are more decided."""

        def scaled(values: Sequence) -> list:
            return (np.asarray(values, dtype=np.float64) * gain).round(3).tolist()

        def row(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(scaled(values))

        def times(entries: tuple) -> tuple:
            # The last part of an entry is its value; what comes before says where it belongs.
            values = scaled([entry[-1] for entry in entries])
            return tuple((*entry[:-1], value) for entry, value in zip(entries, values, strict=True))

        return self.model_copy(
            update={
                "sink_class": row(self.sink_class),
                "sink_token": times(self.sink_token),
                "class_pair": times(self.class_pair),
                "key_token": times(self.key_token),
                "token_before_key": times(self.token_before_key),
                "query_factors": tuple((token, tuple(v)) for token, v in times(self.query_factors)),
                "distance": tuple(map(tuple, scaled(self.distance))),
                "relations": dict(
                    zip(self.relations, row(tuple(self.relations.values())), strict=True)
                ),
            }
        )

    def scores(self, view: TokenView) -> np.ndarray:
        """Return the summed scores: float32 [W, T, T], -inf after the query, the sink in column 0."""
        windows, length = view.shape
        pairs = np.zeros((2 * C, 2 * C), dtype=np.float32)
        for q, k, value in self.class_pair:
            pairs[q, k] = value
        queries = view.memo("class marks", class_marks)
        result = queries @ pairs @ queries.transpose(0, 2, 1)
        result += self._token_scores(view) + self._distance_scores(length)
        flat = result.ravel()
        for name, places in zip(RELATIONS, relation_places(view), strict=True):
            # Each place is marked once by a relation, so that adding by index adds to all.
            flat[places] += np.float32(self.relations.get(name, 0))
        result[:, :, 0] = queries @ np.asarray(self.sink_class, dtype=np.float32)
        result[:, :, 0] += _table(self.sink_token, len(view.vocabulary))[view.tokens]
        result += np.where(np.tri(length, dtype=bool), np.float32(0), np.float32(-np.inf))
        return result

    def _token_scores(self, view: TokenView) -> np.ndarray:
        size = len(view.vocabulary)
        key = _table(self.key_token, size)[view.tokens]
        key[:, 1:] += _table(self.token_before_key, size)[view.tokens[:, :-1]]
        scores = np.repeat(key[:, None, :], view.shape[1], axis=1)
        if self.query_factors and self.key_factors:
            queries = _factor_table(self.query_factors, size)[view.tokens]
            scores += queries @ _factor_table(self.key_factors, size)[view.tokens].transpose(
                0, 2, 1
            )
        return scores

    def _distance_scores(self, length: int) -> np.ndarray:
        table = np.asarray(self.distance, dtype=np.float32)
        octaves = np.minimum(position_octaves(length), len(table) - 1)
        buckets = np.minimum(distance_buckets(length), table.shape[1] - 1)
        gap = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        return table[octaves[:, None], buckets[gap]]

    def affinity(self, view: TokenView) -> np.ndarray:
        return softmax(self.scores(view))

    def english(self) -> str:
        return "the tokens that its score tables favour"


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores [..., T] (-inf where impossible) into rows that sum to 1."""
    rows = np.exp(scores - scores.max(-1, keepdims=True))
    rows /= rows.sum(-1, keepdims=True)
    return rows


def _table(entries: TokenTable, size: int) -> np.ndarray:
    table = np.zeros(size, dtype=np.float32)
    for token, value in entries:
        table[token] = value
    return table


def _factor_table(entries: FactorTable, size: int) -> np.ndarray:
    table = np.zeros((size, len(entries[0][1])), dtype=np.float32)
    table[[token for token, _ in entries]] = [loadings for _, loadings in entries]
    return table
