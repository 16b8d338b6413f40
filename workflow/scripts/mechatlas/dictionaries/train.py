"""Training of all layers of a dictionary, from chunk folders to files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.corpus.windows import SPLITS, read_windows
from mechatlas.dictionaries.collection import write_collection
from mechatlas.dictionaries.loop import fingerprint, metrics_table, train
from mechatlas.dictionaries.settings import TrainingSettings
from mechatlas.dictionaries.stream import ActivationStream
from mechatlas.dictionaries.trainer import SparseTrainer, measure_scaling
from mechatlas.io import (
    UserError,
    file_digest,
    provenance,
    read_json,
    read_provenance,
    write_table,
)
from mechatlas.io.closure import closure_digest


def train_layers(
    windows: str | Path,
    chunks: Sequence[str | Path],
    settings: TrainingSettings,
    *,
    reads: str,
    writes: str,
    layers: Sequence[int] | None,
    about: Mapping[str, Any],
    checkpoints: str | Path,
    checkpoint_every: int,
    device: str,
    weights: str | Path,
    training: str | Path,
) -> None:
    """Train a dictionary for each layer on the train windows and write weights and metrics.

    Parameters
    ----------
    windows : str or Path
        windows.parquet.
    chunks : sequence of folders
        Captured with the points ``reads`` and ``writes``.
    settings : TrainingSettings
    reads, writes : str
        Hook points.
    layers : sequence of int, optional
        All of the model by default.
    about : mapping
        Names for provenance and for the dictionaries themselves.
    checkpoints : str or Path
        Folder for the state of each layer; removed at the end.
    checkpoint_every : int
    device : str
    weights, training : str or Path
        Outputs.

    Raises
    ------
    UserError
        If a layer or point was not captured, activations are not finite or constant, or the loss becomes so.
    """
    chosen, facts = train_windows(windows), captured_facts(chunks)
    layers = wanted_layers(chunks, layers)
    data = [facts, file_digest(windows), [reads, writes], asdict(settings)]
    data.append(closure_digest(Path(__file__).resolve()))
    dictionaries, tables = {}, []
    for layer in layers:
        places = (reads, layer), (writes, layer)
        stream = ActivationStream(
            chunks, {*places}, chosen, batch_tokens=settings.batch_tokens,
            buffer_windows=settings.buffer_windows, seed=settings.seed, device=device,
        )  # fmt: skip
        trainer = SparseTrainer(settings, *places, measure_scaling(stream, *places))
        history = train(
            trainer, stream, settings.steps,
            checkpoint=Path(checkpoints) / f"layer_{layer}.safetensors",
            identity=fingerprint(data=data, layer=layer),
            checkpoint_every=checkpoint_every, desc=f"layer {layer}",
        )  # fmt: skip
        hashes = {"model_hash": facts.get("model_hash")}
        dictionaries[layer] = trainer.result({**about, **hashes})
        tables.append(metrics_table(history, trainer.metrics, layer=np.int32(layer)))
    record = provenance(**facts, **about, settings=asdict(settings), tokens=settings.tokens)
    write_collection(weights, dictionaries, record)
    write_table(training, pd.concat(tables, ignore_index=True), record)
    shutil.rmtree(checkpoints, ignore_errors=True)


def train_windows(path: str | Path, split: str = "train") -> np.ndarray:
    """Return the windows of a split, int64 ``[n]``."""
    return np.flatnonzero(read_windows(path, tokens=False).splits == SPLITS.index(split))


def captured_facts(chunks: Sequence[str | Path]) -> dict[str, Any]:
    """Return what the provenance of captured chunks says of model and precision; all must agree."""
    found = [read_provenance(Path(chunk) / "index.json") for chunk in chunks]
    facts = [{k: record.get(k) for k in ("model", "model_hash", "dtype")} for record in found]
    if not facts or any(fact != facts[0] for fact in facts):
        raise UserError("the chunks were captured from different models; capture them again")
    # The model's name is said by the caller.
    return {key: facts[0][key] for key in ("model_hash", "dtype")}


def wanted_layers(chunks: Sequence[str | Path], layers: Sequence[int] | None) -> list[int]:
    """Return the given layers, or all of the captured model; raise `UserError` if one does not exist."""
    count = read_json(Path(chunks[0]) / "index.json")["layers"]
    missing = [layer for layer in layers or () if layer >= count]
    if missing:
        raise UserError(
            f"layers: {missing[0]} is out of range; the model has layers 0 to {count - 1}"
        )
    return list(range(count)) if layers is None else sorted(layers)
