"""Patch the components of some layers of one model on one task, for `measure_components` to gather.

Inputs: prompts.jsonl, the model folder. Output: the metrics under every patch. ``steps`` is a folder in which finished
parts are kept, so that a killed run continues.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.layer_batches import LayerBatch
from mechatlas.circuits.patching_study import patch_layers
from mechatlas.circuits.steps import Steps
from mechatlas.circuits.task_data import load_task_data
from mechatlas.models.device import pick_device
from mechatlas.spread import share


def main(
    prompts: str,
    model: str,
    name: str,
    batch: Sequence[int],
    patching: Mapping[str, Any],
    steps: str,
    device: str,
    dtype: str,
    patched: str,
    bos: str | None = None,
    gpu: int = 0,
) -> None:
    """Patch the task whose prompts are given; ``batch`` is the number of this batch and how many there are."""
    data = load_task_data(prompts, model, name, pick_device(gpu, device), dtype, bos)
    kept = Steps(steps, data, {}, "circuits/patching.py")
    mine = LayerBatch(kept.parts, share(data.model.config.n_layers, *batch))
    patch_layers(data, patching, mine)
    mine.write(patched)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
