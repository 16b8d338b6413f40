"""Train the sparse autoencoders (or transcoders) of one dictionary, a layer after the other.

Inputs: windows.parquet, the chunk folders with activations of the points read and written. Outputs: ``weights``, a
folder with index.json and layer_{layer}.safetensors; training.parquet, a row per layer and step. A killed job goes on
from its checkpoints.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.dictionaries.settings import TrainingSettings
from mechatlas.dictionaries.train import train_layers
from mechatlas.models.device import pick_device


def main(
    windows: str,
    chunks: Sequence[str],
    name: str,
    source: str,
    dictionary: str,
    reads: str,
    writes: str,
    layers: Sequence[int] | None,
    settings: Mapping[str, Any],
    checkpoints: str,
    checkpoint_every: int,
    seed: int,
    device: str,
    gpu: int,
    weights: str,
    training: str,
) -> None:
    """Train ``layers`` (all that were captured, if None) on the windows of train documents."""
    train_layers(
        windows,
        chunks,
        TrainingSettings(**settings, seed=seed),
        reads=reads,
        writes=writes,
        layers=layers,
        about={"model": name, "source": source, "dictionary": dictionary},
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        device=pick_device(gpu, device),
        weights=weights,
        training=training,
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
