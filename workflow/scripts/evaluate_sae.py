"""Measure dictionaries on test documents: reconstruction, sparsity, and what the model loses when it runs on them.

Inputs: the weights folder, windows.parquet, the chunk folders, the model folder. Outputs: evaluation.parquet (a row per
layer and metric, with intervals over documents), latents.parquet (a row per latent: how often and how strongly active).
"""

from typing import Any

from mechatlas.job import job
from mechatlas.dictionaries.evaluate import evaluate_layers
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load


def main(weights: str, model: str, device: str, dtype: str, gpu: int = 0, **others: Any) -> None:
    """Evaluate every layer; ``others`` are the remaining arguments of `evaluate_layers`."""
    evaluate_layers(weights, load(model, device=pick_device(gpu, device), dtype=dtype), **others)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
