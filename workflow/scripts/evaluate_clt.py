"""Measure a cross-layer transcoder on test documents: reconstruction, sparsity, the model that runs on it alone.

Inputs: clt.safetensors, windows.parquet, the chunk folders, the model folder. Outputs: evaluation.parquet (a row per
layer and metric, layer -1 for all layers), features.parquet (a row per feature), examples.parquet (the strongest
activations of each feature).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.dictionaries.clt_evaluation import evaluate_clt
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load


def main(
    clt: str,
    windows: str,
    chunks: Sequence[str],
    model: str,
    causal_windows: int,
    batch_windows: int,
    bootstrap: int,
    confidence: float,
    seed: int,
    device: str,
    dtype: str,
    evaluation: str,
    features: str,
    examples: str,
    gpu: int = 0,
) -> None:
    """Evaluate; the model runs on the first ``causal_windows`` test windows."""
    evaluate_clt(
        clt,
        load(model, device=pick_device(gpu, device), dtype=dtype),
        windows,
        chunks,
        causal_windows=causal_windows,
        batch_windows=batch_windows,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        evaluation=evaluation,
        features=features,
        examples=examples,
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
