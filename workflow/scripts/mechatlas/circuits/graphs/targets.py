"""What a graph explains: logits of tokens, or any direction in the final residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechatlas.circuits.graphs.run import LocalRun
from mechatlas.io import UserError


@dataclass(frozen=True)
class Target:
    """A linear function of the normalised final residual at the last position.

    Attributes
    ----------
    vector : Tensor [d]
    weight : float
        Its share in influence: the probability of a token.
    token : int
        -1 for a custom direction.
    label : str
        Empty for a token.
    """

    vector: Tensor
    weight: float
    token: int = -1
    label: str = ""


def salient_logits(run: LocalRun, *, most: int = 10, mass: float = 0.95) -> list[Target]:
    """Return the fewest most likely next tokens whose probabilities sum to ``mass``, at most ``most``.

    A logit is taken less the mean over the vocabulary, as only differences of logits matter.

    Raises
    ------
    UserError
        If ``mass`` is not in (0, 1] or ``most`` is below 1.
    """
    if not 0 < mass <= 1 or most < 1:
        raise UserError(f"logits: mass {mass} must be in (0, 1] and their number {most} at least 1")
    p = run.logits().double().softmax(-1)
    top = p.topk(min(most, len(p)))
    count = min(int((top.values.cumsum(0) < mass).sum()) + 1, len(top.values))
    return token_targets(run, top.indices[:count].tolist())


def token_targets(run: LocalRun, tokens: Sequence[int]) -> list[Target]:
    """Return the logits of given tokens, less the mean over the vocabulary, weighted by their probabilities.

    Raises
    ------
    UserError
        If a token is not in the vocabulary, or none is given.
    """
    vocab = run.model.config.vocab_size
    outside = [token for token in tokens if not 0 <= token < vocab]
    if outside or not tokens:
        raise UserError(
            f"target tokens {outside or 'none'}: give at least one, each in the vocabulary of {vocab} tokens"
        )
    p = run.logits().double().softmax(-1)
    w_u = run.model.weights.unembedding
    mean = w_u.mean(0)
    return [Target(w_u[token] - mean, float(p[token]), token) for token in tokens]


def logit_difference(run: LocalRun, answer: int, wrong: int, label: str = "") -> Target:
    """Return the difference of the logits of two tokens, with weight 1."""
    first, second = token_targets(run, [answer, wrong])
    return Target(
        first.vector - second.vector, 1.0, label=label or f"logit {answer} - logit {wrong}"
    )


def direction(run: LocalRun, vector: Tensor, label: str, weight: float = 1.0) -> Target:
    """Return a custom direction ``[d]`` of the normalised final residual.

    Raises
    ------
    UserError
        If its width is not the model's or the weight is not positive.
    """
    d = run.model.config.d_model
    if tuple(vector.shape) != (d,) or not weight > 0 or not bool(torch.isfinite(vector).all()):
        raise UserError(
            f"target {label!r}: give a finite vector of the model's width {d} and a positive weight"
        )
    return Target(vector.to(run.final), weight, label=label)
