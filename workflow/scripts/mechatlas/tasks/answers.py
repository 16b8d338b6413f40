"""What a model says at the end of prompts: logit differences, probabilities, the likeliest token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch

from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.pairs import PairBatch

ROWS = 64
FILTERS = ("none", "above_wrong", "top1", "confident")


@dataclass(frozen=True)
class EndScores:
    """A model's answers, one entry for each prompt.

    Attributes
    ----------
    logit_difference : numpy.ndarray
        [N] float64, logit(answer) - logit(wrong).
    top1 : numpy.ndarray
        [N] bool, whether the likeliest token of the vocabulary is the answer (or any right choice).
    answer, wrong : numpy.ndarray
        [N] float64, the probability of the answer and of the wrong answer, or of all right and all wrong choices.
    """

    logit_difference: np.ndarray
    top1: np.ndarray
    answer: np.ndarray
    wrong: np.ndarray

    def accepted(self, rule: str) -> np.ndarray:
        """Return which prompts [N] pass a filter of correctness.

        Parameters
        ----------
        rule : str
            ``none``; ``above_wrong``: the answer is likelier than the wrong one; ``top1``: it is the likeliest token;
            ``confident``: so it is, with more than twice the probability of the wrong one (the rule of Lan, Torr, Barez
            2023, arXiv 2311.04131).

        Raises
        ------
        UserError
            If there is no such rule.
        """
        rules: dict[str, Callable[[], np.ndarray]] = {
            "none": lambda: np.ones(len(self.top1), dtype=bool),
            "above_wrong": lambda: self.answer > self.wrong,
            "top1": lambda: self.top1,
            "confident": lambda: self.top1 & (self.answer > 2 * self.wrong),
        }
        if rule not in rules:
            raise UserError(f"filter: {rule!r} is not known; choose from {', '.join(FILTERS)}")
        return rules[rule]()


def end_scores(model: Transformer, batch: PairBatch, *, corrupted: bool = False) -> EndScores:
    """Run a model on the clean (or the corrupted) prompts and read their last position.

    Answer and wrong answer are those of the clean prompt in both cases. The vocabulary's logits exist for `ROWS`
    prompts at a time and at one position only.

    Raises
    ------
    UserError
        If the prompts are longer than the model's context.
    """
    if batch.length > model.config.n_ctx:
        raise UserError(
            f"task {batch.task}: its prompts have {batch.length} tokens, but the model's context is "
            f"{model.config.n_ctx}; show less in a prompt or leave the task out ({batch.task}: null)"
        )
    tokens = torch.from_numpy(batch.corrupted if corrupted else batch.clean).to(model.device)
    parts = []
    with torch.inference_mode():
        for first in range(0, len(batch), ROWS):
            rows = np.arange(first, min(first + ROWS, len(batch)))
            final = model.forward(tokens[rows[0] : rows[-1] + 1], logits=False)[:, -1]
            parts.append(_scores(model.unembed(final).double().cpu().numpy(), batch, rows))
    columns = (f.name for f in fields(EndScores))
    return EndScores(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in columns}
    )


def _scores(logits: np.ndarray, batch: PairBatch, rows: np.ndarray) -> EndScores:
    row = np.arange(len(rows))
    answers, wrong = batch.answers[rows], batch.wrong[rows]
    best = logits.argmax(axis=1)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    top1, right_mass, wrong_mass = (
        best == answers,
        probabilities[row, answers],
        probabilities[row, wrong],
    )
    if batch.choices is not None and batch.correct is not None:
        chosen, correct = probabilities[:, batch.choices], batch.correct[rows]
        top1 = (correct & (batch.choices[None, :] == best[:, None])).any(axis=1)
        right_mass, wrong_mass = (chosen * correct).sum(axis=1), (chosen * ~correct).sum(axis=1)
    difference = logits[row, answers] - logits[row, wrong]
    return EndScores(difference, top1, right_mass, wrong_mass)
