"""How well a model does the tasks: accuracies, logit differences, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mechatlas.tasks.prompts import PromptBatch

Logits = Callable[[np.ndarray], np.ndarray]
"""Tokens [N, T] int64 to logits [N, T, V]."""

CHUNK = 64


@dataclass(frozen=True)
class BehaviourScore:
    """Result on one batch of prompts.

    Attributes
    ----------
    count : int
        Prompts.
    accuracy : float
        Share in which the answer's logit is above the wrong answer's.
    top1 : float
        Share in which the answer has the highest logit of the vocabulary.
    logit_difference : float
        Mean of logit(answer) - logit(wrong).
    """

    count: int
    accuracy: float
    top1: float
    logit_difference: float


def end_logits(logits: Logits, batch: PromptBatch) -> np.ndarray:
    """Return the logits [N, V] at each prompt's last token."""
    parts = []
    for first in range(0, len(batch), CHUNK):
        rows = slice(first, first + CHUNK)
        ends = batch.end[rows]
        values = logits(batch.tokens[rows, : int(ends.max()) + 1])
        parts.append(values[np.arange(len(ends)), ends])
    return np.concatenate(parts)


def measure(logits: Logits, batch: PromptBatch) -> BehaviourScore:
    """Score a model on prompts with one answer and one wrong answer."""
    values = end_logits(logits, batch)
    rows = np.arange(len(batch))
    difference = values[rows, batch.answers] - values[rows, batch.wrong]
    return BehaviourScore(
        count=len(batch),
        accuracy=float((difference > 0).mean()),
        top1=float((values.argmax(axis=1) == batch.answers).mean()),
        logit_difference=float(difference.mean()),
    )


def measure_choices(logits: Logits, batch: PromptBatch) -> dict[str, float]:
    """Score a model on prompts with many right answers (greater-than).

    Returns
    -------
    dict
        ``probability_difference``: mean over prompts of the probability of all right choices minus that of all wrong
        ones, over the whole vocabulary; ``accuracy``: share of prompts whose likeliest token is a right choice.

    Raises
    ------
    ValueError
        If the batch has no choices.
    """
    if batch.choices is None or batch.correct is None:
        raise ValueError(f"task {batch.task} has no choices")
    values = end_logits(logits, batch).astype(np.float64)
    probabilities = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    chosen = probabilities[:, batch.choices]
    best = values.argmax(axis=1)
    right = (batch.correct & (batch.choices[None, :] == best[:, None])).any(axis=1)
    sign = np.where(batch.correct, 1.0, -1.0)
    return {
        "probability_difference": float((chosen * sign).sum(axis=1).mean()),
        "accuracy": float(right.mean()),
    }


def induction_top1(logits: Logits, tokens: np.ndarray, period: int) -> float:
    """Return the top-1 accuracy on the predictable tokens of a repeated block.

    Parameters
    ----------
    logits : callable
    tokens : numpy.ndarray
        [N, 1 + 2 * period] int64 from `mechatlas.tasks.induction.repeated_tokens`.
    period : int
        Tokens in the block.

    Returns
    -------
    float
        Share over all tokens of the second copy but its first, which nothing announces.
    """
    hits = []
    for first in range(0, len(tokens), CHUNK):
        rows = tokens[first : first + CHUNK]
        best = logits(rows)[:, period + 1 : -1].argmax(axis=2)
        hits.append(best == rows[:, period + 2 :])
    return float(np.concatenate(hits).mean())
