"""Training of a cross-layer transcoder from capture shards: statistics, steps, checks on validation windows, result."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.dictionaries.clt_formats import save_clt
from mechatlas.dictionaries.clt_settings import CltSettings
from mechatlas.dictionaries.clt_trainer import METRICS, CltTrainer, clt_places, measure_scales
from mechatlas.dictionaries.loop import fingerprint, metrics_table, train
from mechatlas.dictionaries.stream import ActivationStream
from mechatlas.dictionaries.train import captured_facts, train_windows, wanted_layers
from mechatlas.io import file_digest, provenance, write_table

logger = logging.getLogger("mechatlas")


def train_clt(
    chunks: Sequence[str | Path],
    n_layers: int,
    settings: CltSettings,
    *,
    train_windows: np.ndarray,
    validation_windows: np.ndarray,
    checkpoint: str | Path,
    checkpoint_every: int = 1000,
    about: Mapping[str, Any] | None = None,
    device: str = "cpu",
    stop_at: int | None = None,
) -> tuple[CrossLayerTranscoder, Tensor]:
    """Train a transcoder, or go on from a checkpoint with the same result as without the interruption.

    Parameters
    ----------
    chunks : sequence of folders
        Capture shards with what the settings read, and ``mlp_out``, of all layers.
    n_layers : int
    settings : CltSettings
    train_windows, validation_windows : int [n]
        The second ones decide about an early stop, if there is to be one.
    checkpoint : str or Path
    checkpoint_every : int
        Steps between checkpoints, and between checks for an early stop.
    about : mapping, optional
        What the transcoder says about itself, with the model's hash; part of what a checkpoint must fit.
    device : str
    stop_at : int, optional
        Stop after this step, as if interrupted.

    Returns
    -------
    CrossLayerTranscoder
    Tensor [steps, L, metrics]
        `clt_trainer.METRICS` after each step.

    Raises
    ------
    UserError
        If shards do not fit or are damaged, or the loss is not finite.
    """
    stream = _stream(chunks, n_layers, settings, train_windows, device)
    check = None
    if settings.patience and len(validation_windows):
        check = _stream(chunks, n_layers, settings, validation_windows, device)
    scales = measure_scales(stream, settings.reads, n_layers)
    trainer = CltTrainer(settings, scales, check, checkpoint_every)
    windows = [np.asarray(part).tolist() for part in (train_windows, validation_windows)]
    identity = fingerprint(
        settings=asdict(settings),
        windows=windows,
        about=dict(about or {}),
        every=checkpoint_every if check else 0,
    )
    last = min(settings.steps, stop_at or settings.steps)
    # In pieces, each of which begins where the checkpoint of the one before ends.
    pieces = range(checkpoint_every, last, checkpoint_every) if check else ()
    history = torch.zeros(0)
    for stop in (*pieces, last):
        history = train(
            trainer,
            stream,
            settings.steps,
            checkpoint=checkpoint,
            identity=identity,
            checkpoint_every=checkpoint_every,
            desc="transcoder",
            stop_at=stop,
        )
        if trainer.finished:
            logger.info("no better on validation windows: stopped after step %d", len(history))
            break
    return trainer.result(about or {}), history


def _stream(
    chunks: Sequence[str | Path],
    n_layers: int,
    settings: CltSettings,
    windows: np.ndarray,
    device: str,
) -> ActivationStream:
    return ActivationStream(
        chunks,
        clt_places(settings.reads, n_layers),
        windows,
        batch_tokens=settings.batch_tokens,
        buffer_windows=settings.buffer_windows,
        seed=settings.seed,
        device=device,
    )


def train_to_files(
    windows: str | Path,
    chunks: Sequence[str | Path],
    settings: CltSettings,
    *,
    about: Mapping[str, Any],
    checkpoint: str | Path,
    checkpoint_every: int,
    device: str,
    clt: str | Path,
    training: str | Path,
) -> None:
    """Train on the train windows of a file and write transcoder and metrics; the checkpoint goes in the end.

    Raises
    ------
    UserError
        As `train_clt`, or if chunks are of different models.
    """
    facts = captured_facts(chunks)
    n_layers = len(wanted_layers(chunks, None))
    about = {**about, "model_hash": facts.get("model_hash"), "windows": file_digest(windows)}
    trained, history = train_clt(
        chunks,
        n_layers,
        settings,
        train_windows=train_windows(windows),
        validation_windows=train_windows(windows, "validation"),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        about=about,
        device=device,
    )
    record = provenance(**{**facts, **about}, settings=asdict(settings), steps=len(history))
    save_clt(clt, trained, record)
    layers = [np.int32(layer) for layer in range(n_layers)]
    write_table(training, metrics_table(history, METRICS, layer=layers), record)
    Path(checkpoint).unlink(missing_ok=True)
