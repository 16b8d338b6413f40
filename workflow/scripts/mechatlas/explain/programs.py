"""Programs: explanations of attention heads that can be executed.

A program is a mixture of up to a few parts. Part i is a form with a share w_i; the shares and the sink share add up to
1. The predicted attention row of query q is

    A^[q, k] = sum_i w_i P_i[q, k] + (1 - sum of the shares that apply at q) [k = BOS]

where P_i is the affinity of the form divided by its row sum. A part that finds nothing at q leaves its share to the
sink. Programs are plain data: they are validated strictly, stored as JSON, rendered in English and run on any tokens.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mechatlas.explain.forms import (
    Delimiter,
    Distance,
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
    TokenClass,
    Uniform,
)
from mechatlas.explain.scores_form import Scores
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import UserError

AnyForm = Annotated[
    Itself
    | Previous
    | Start
    | Duplicate
    | SameWord
    | Induction
    | Delimiter
    | Opener
    | TokenClass
    | SameClass
    | Member
    | Distance
    | Uniform
    | Scores,
    Field(discriminator="form"),
]


class Part(BaseModel):
    """A form and its share of the attention where it applies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(ge=0, le=1)
    form: AnyForm


class Program(BaseModel):
    """An executable explanation of one head.

    Attributes
    ----------
    parts : tuple of Part
        Possibly empty: all attention rests on BOS then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[Part, ...] = Field(max_length=8)

    @model_validator(mode="after")
    def _shares(self) -> Program:
        if sum(part.share for part in self.parts) > 1 + 1e-6:
            raise ValueError("the shares of the parts add up to more than 1")
        return self

    @property
    def sink(self) -> float:
        """Share of attention on BOS where every part applies."""
        return max(0.0, 1 - sum(part.share for part in self.parts))

    def predict(self, view: TokenView) -> np.ndarray:
        """Predict the attention pattern: float32 [W, T, T]; every row sums to 1."""
        windows, length = view.shape
        pattern = np.zeros((windows, length, length), dtype=np.float32)
        for part in self.parts:
            affinity = part.form.affinity(view)
            # Rows of score tables sum to 1 already.
            rows = affinity if isinstance(part.form, Scores) else normalise(affinity)
            pattern += np.float32(part.share) * rows
        pattern[:, :, 0] += np.maximum(0, 1 - pattern.sum(-1))
        return pattern

    def to_json(self) -> dict[str, Any]:
        """Return the program as plain data."""
        return self.model_dump(mode="json")


def parse_program(data: Any) -> Program:
    """Build a program from plain data.

    Raises
    ------
    UserError
        If the data are not a program; the message names the first offending field.
    """
    try:
        return Program.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "program"
        raise UserError(
            f"not a valid program: {where}: {first['msg']} (see docs/programs.md for the forms)"
        ) from error


def normalise(affinity: np.ndarray) -> np.ndarray:
    """Divide rows by their sums; rows without affinity stay zero (float32 [..., T])."""
    total = affinity.sum(-1, keepdims=True)
    return affinity / np.where(total > 0, total, 1)


def form_key(form: Form) -> str:
    """Return a short stable name of a form, such as ``previous(offset=2)``."""
    fields = {k: v for k, v in form.model_dump().items() if k != "form"}
    name = form.model_dump()["form"]
    if name in ("scores", "distance"):
        return name
    inside = ",".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{name}({inside})" if inside else name
