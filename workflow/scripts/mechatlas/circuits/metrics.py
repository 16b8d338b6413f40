"""What is measured at the end of a prompt.

A metric maps normalised final residuals ``x [..., N, d]`` (N pairs, fixed when the metric is made) to values
``[..., N]``. Logit differences need two rows of the unembedding; the others need the vocabulary, which exists only for
a bounded number of rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer

METRICS = ("logit_difference", "probability_difference", "kl", "rank")
LOGITS_PER_CHUNK = 2**23  # vocabulary logits held at once (32 MiB in float32)


@dataclass(frozen=True)
class Metric:
    """A metric of N pairs.

    Attributes
    ----------
    name : str
        ``logit_difference``: logit of the answer minus logit of the wrong answer; ``probability_difference``: the
        same for probabilities; ``kl``: KL divergence in nats from the clean model's next-token distribution to
        this one; ``rank``: number of tokens with a higher logit than the answer (0 is best).
    unembedding : Tensor [V, d]
    answers, wrong : Tensor [N]
    clean : Tensor [N, d] or None
        Normalised final residual of the clean run (``kl`` only).
    """

    name: str
    unembedding: Tensor
    answers: Tensor
    wrong: Tensor
    clean: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values ``[..., N]`` of normalised final residuals ``[..., N, d]``."""
        return measure([self], x)[0]

    @property
    def direction(self) -> Tensor:
        """``W_U[answer] - W_U[wrong]``, ``[N, d]``: the gradient of the logit difference."""
        return self.unembedding[self.answers] - self.unembedding[self.wrong]

    def select(self, index: Tensor | slice) -> Metric:
        """Return the metric of some of the pairs."""
        clean = None if self.clean is None else self.clean[index]
        return replace(self, answers=self.answers[index], wrong=self.wrong[index], clean=clean)

    def of_logits(self, logits: Tensor, pairs: Tensor) -> Tensor:
        """Return the values ``[K, n]`` of logits ``[K, n, V]`` of some pairs (not of a logit difference)."""
        answers, wrong = (
            ids[pairs].expand(len(logits), -1)[..., None] for ids in (self.answers, self.wrong)
        )
        if self.name == "rank":
            return (logits > logits.gather(-1, answers)).sum(-1).to(logits.dtype)
        log_p = logits.log_softmax(-1)
        if self.name == "kl":
            clean = (self.clean[pairs] @ self.unembedding.mT).log_softmax(-1)
            return (clean.exp() * (clean - log_p)).sum(-1)
        return (log_p.gather(-1, answers).exp() - log_p.gather(-1, wrong).exp())[..., 0]


def measure(metrics: Sequence[Metric], x: Tensor) -> list[Tensor]:
    """Return the values ``[..., N]`` of several metrics of the same pairs, whose logits are computed once.

    Parameters
    ----------
    metrics : sequence of Metric
        Of one model.
    x : Tensor [..., N, d]
        Normalised final residuals.
    """
    wide = [metric for metric in metrics if metric.name != "logit_difference"]
    found = dict(zip([m.name for m in wide], _of_vocabulary(wide, x) if wide else (), strict=True))
    return [found[m.name] if m.name in found else (x * m.direction).sum(-1) for m in metrics]


def _of_vocabulary(metrics: Sequence[Metric], x: Tensor) -> Tensor:
    """Return the values ``[M, ..., N]`` of M metrics, a bounded number of logits at a time."""
    rows, unembedding = x.reshape(-1, *x.shape[-2:]), metrics[0].unembedding
    size = max(1, LOGITS_PER_CHUNK // len(unembedding))
    columns = []
    for few in torch.arange(rows.shape[1], device=x.device).split(size):
        chunks = (part @ unembedding.mT for part in rows[:, few].split(max(1, size // len(few))))
        values = [torch.stack([m.of_logits(chunk, few) for m in metrics]) for chunk in chunks]
        columns.append(torch.cat(values, dim=1))
    return torch.cat(columns, dim=2).view(len(metrics), *x.shape[:-1])


def make_metric(
    name: str, model: Transformer, answers: Tensor, wrong: Tensor, clean: Tensor | None = None
) -> Metric:
    """Make a metric of N pairs.

    Parameters
    ----------
    name : str
        One of `METRICS`.
    model : Transformer
    answers, wrong : int64 Tensor [N]
    clean : Tensor [N, d], optional
        Normalised final residual of the clean run at the end; ``kl`` needs it.

    Raises
    ------
    UserError
        If the metric does not exist.
    """
    if name not in METRICS:
        raise UserError(f"metric {name!r} does not exist; choose one of {', '.join(METRICS)}")
    if name == "kl" and clean is None:
        raise ValueError("kl compares with the clean run; pass its final residual as clean")
    device = model.device
    kept = clean if name == "kl" else None
    return Metric(name, model.weights.unembedding, answers.to(device), wrong.to(device), kept)


def require_solved(difference: Tensor, what: str) -> None:
    """Raise `UserError` unless the mean clean logit difference is positive."""
    mean = float(difference.mean())
    if not mean > 0:
        raise UserError(
            f"{what}: the mean clean logit difference is {mean:.3g}, so the model does not do the task and a circuit "
            "would explain nothing; filter the prompts by correctness or choose a task that the model solves"
        )
