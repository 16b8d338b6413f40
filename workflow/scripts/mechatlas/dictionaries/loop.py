"""The training loop of any dictionary: steps, metrics, checkpoints, resume, and what to do about NaN.

A dictionary that can be trained is a `Trainable`. Batches come from `mechatlas.dictionaries.stream.ActivationStream`,
so that the number of the step is all that must be known to go on, besides the trainable's own tensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mechatlas.dictionaries.stream import ActivationStream, Place
from mechatlas.io import UserError, progress, read_provenance
from mechatlas.io.tensors import read_tensors, write_tensors

logger = logging.getLogger("mechatlas")


class Trainable(Protocol):
    """What the loop needs of a dictionary in training."""

    #: Names of the numbers that `measure` returns, in its order; the first is the loss.
    metrics: tuple[str, ...]

    def loss(self, batch: Mapping[Place, Tensor], step: int) -> Tensor:
        """Return the loss of a batch, from which gradients flow."""

    def update(self, loss: Tensor, step: int) -> None:
        """Make one step of the optimiser down the loss that `loss` has just returned."""

    def measure(self) -> Tensor:
        """Return the numbers of the latest step, float32 ``[metrics]`` or ``[rows, metrics]`` (rows such as layers)."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on: weights, moments, counters."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""


def fingerprint(**facts: Any) -> str:
    """Return a digest of everything (JSON values) on which the steps of a training depend."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train(
    trainable: Trainable,
    stream: ActivationStream,
    steps: int,
    *,
    checkpoint: str | Path,
    identity: str,
    checkpoint_every: int = 1000,
    desc: str = "training",
    stop_at: int | None = None,
) -> Tensor:
    """Train, or go on from a checkpoint; the same steps follow from it as without the interruption.

    Parameters
    ----------
    trainable : Trainable
        As initialised; overwritten by the checkpoint if there is one.
    stream : ActivationStream
    steps : int
        Of the whole training.
    checkpoint : str or Path
        File (safetensors) that is written every ``checkpoint_every`` steps and at the end.
    identity : str
        From `fingerprint`. A checkpoint of another identity is not used.
    desc : str
        What the progress line calls it.
    stop_at : int, optional
        Stop after this step with a checkpoint, as if interrupted.

    Returns
    -------
    Tensor [steps, ...]
        What `Trainable.measure` returned after each step, float32.

    Raises
    ------
    UserError
        If the loss is not finite. The checkpoint then is the last one before; or if the checkpoint is damaged.
    """
    done, history = _restore(trainable, Path(checkpoint), identity)
    rows: list[Tensor] = list(history)

    def status() -> str:
        latest = rows[-1].reshape(-1, len(trainable.metrics)).mean(0).tolist()
        named = zip(trainable.metrics, latest, strict=True)
        return ", ".join(f"{name} {value:.4g}" for name, value in named)

    last = min(steps, stop_at or steps)
    todo = progress(range(done, last), total=last - done, desc=desc, unit="steps", status=status)
    for step in todo:
        loss = trainable.loss(stream.batch(step), step)
        if not math.isfinite(float(loss.detach())):
            raise UserError(_not_finite(desc, step, checkpoint, done, checkpoint_every))
        trainable.update(loss, step)
        rows.append(trainable.measure().detach().float().cpu())
        if (step + 1) % checkpoint_every == 0 or step + 1 == last:
            _store(trainable, Path(checkpoint), identity, step + 1, torch.stack(rows))
    return torch.stack(rows)


def metrics_table(history: Tensor, metrics: tuple[str, ...], **columns: Any) -> Any:
    """Return what `train` returned as a data frame: ``step`` (from 1), ``columns``, then a column per metric.

    With rows within a step, a list among ``columns`` names them, one value each.
    """
    import pandas as pd

    steps, rows = history.shape[0], history.reshape(history.shape[0], -1, len(metrics)).shape[1]
    table = {"step": torch.arange(1, steps + 1, dtype=torch.int32).repeat_interleave(rows).numpy()}
    for name, value in columns.items():
        table[name] = list(value) * steps if isinstance(value, list) else value
    flat = history.reshape(-1, len(metrics)).numpy()
    return pd.DataFrame(table | {name: flat[:, i] for i, name in enumerate(metrics)})


def _store(trainable: Trainable, path: Path, identity: str, step: int, history: Tensor) -> None:
    tensors = {**trainable.tensors(), "history": history}
    write_tensors(path, tensors, {"identity": identity, "step": step})


def _restore(trainable: Trainable, path: Path, identity: str) -> tuple[int, Tensor]:
    if not path.exists():
        return 0, torch.zeros(0)
    facts = read_provenance(path)
    if facts.get("identity") != identity:
        logger.info("%s belongs to other settings, data or code: starting anew", path)
        return 0, torch.zeros(0)
    tensors = read_tensors(path)
    try:
        trainable.load(tensors)
        history = tensors["history"]
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} cannot be used ({error}); delete it to start again"
        ) from error
    logger.info("going on after step %d of %s", facts["step"], path)
    return int(facts["step"]), history


def _not_finite(desc: str, step: int, checkpoint: str | Path, done: int, every: int) -> str:
    kept = max(done, step // every * every)
    where = f"; the state after step {kept} is in {checkpoint}" if kept else ""
    return f"{desc}: the loss is not finite at step {step + 1}{where}; lower learning_rate or sparsity and run again"
