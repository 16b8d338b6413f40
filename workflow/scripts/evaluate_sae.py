"""Measure dictionaries on test documents: reconstruction, sparsity, and what the model loses when it runs on them.

Inputs: the weights folder, windows.parquet, the chunk folders, the model folder. Outputs: evaluation.parquet (a row per
layer and metric, with intervals over documents), latents.parquet (a row per latent: how often and how strongly active).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.dictionaries.evaluate import evaluate_layers
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load


def main(
    weights: str,
    windows: str,
    chunks: Sequence[str],
    model: str,
    dictionary: str,
    causal_windows: int,
    batch_windows: int,
    bootstrap: int,
    confidence: float,
    seed: int,
    device: str,
    dtype: str,
    gpu: int,
    evaluation: str,
    latents: str,
) -> None:
    """Evaluate every layer; the model runs on the first ``causal_windows`` test windows."""
    evaluate_layers(
        weights,
        load(model, device=pick_device(gpu, device), dtype=dtype),
        windows,
        chunks,
        dictionary=dictionary,
        causal_windows=causal_windows,
        batch_windows=batch_windows,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        evaluation=evaluation,
        latents=latents,
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
