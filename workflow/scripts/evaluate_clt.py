"""Measure a cross-layer transcoder on test documents: reconstruction, sparsity, the model that runs on it alone.

Inputs: clt.safetensors, windows.parquet, the chunk folders, the model folder. Outputs: evaluation.parquet (a row per
layer and metric, layer -1 for all layers), features.parquet (a row per feature), examples.parquet (the strongest
activations of each feature).
"""

from typing import Any

from mechatlas.job import job
from mechatlas.dictionaries.clt_evaluation import evaluate_clt
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load


def main(clt: str, model: str, device: str, dtype: str, gpu: int = 0, **others: Any) -> None:
    """Evaluate; ``others`` are the remaining arguments of `evaluate_clt`."""
    evaluate_clt(clt, load(model, device=pick_device(gpu, device), dtype=dtype), **others)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
