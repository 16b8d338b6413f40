"""Train one cross-layer transcoder.

Inputs: windows.parquet, the chunk folders with the activations of all layers. Outputs: clt.safetensors;
training.parquet, a row per step and layer. A killed job goes on from its checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.dictionaries.clt_settings import CltSettings
from mechatlas.dictionaries.clt_training import train_to_files
from mechatlas.models.device import pick_device


def main(
    windows: str,
    chunks: Sequence[str],
    name: str,
    source: str,
    transcoder: str,
    settings: Mapping[str, Any],
    checkpoint: str,
    checkpoint_every: int,
    seed: int,
    device: str,
    clt: str,
    training: str,
    gpu: int = 0,
) -> None:
    """Train on the windows of train documents."""
    train_to_files(
        windows,
        chunks,
        CltSettings(**settings, seed=seed),
        about={"model": name, "source": source, "transcoder": transcoder},
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        device=pick_device(gpu, device),
        clt=clt,
        training=training,
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
