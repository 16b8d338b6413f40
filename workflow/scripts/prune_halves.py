"""Prune the nodes of a model on random halves of the prompts of one task, for `prune_nodes` to gather.

Inputs: prompts.jsonl, the model folder. Output: the circuits of some halves. ``steps`` is a folder in which finished
halves are kept, so that a killed run continues.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.batches import Batch
from mechatlas.circuits.node_study import node_steps, prune_halves
from mechatlas.circuits.task_data import load_task_data
from mechatlas.models.device import pick_device
from mechatlas.spread import share


def main(
    prompts: str,
    model: str,
    name: str,
    batch: Sequence[int],
    nodes: Mapping[str, Any],
    seed: int,
    steps: str,
    device: str,
    dtype: str,
    halves: str,
    bos: str | None = None,
    gpu: int = 0,
) -> None:
    """Prune halves of the task whose prompts are given; ``batch`` is the number of this job and how many there are."""
    data = load_task_data(prompts, model, name, pick_device(gpu, device), dtype, bos)
    kept = node_steps(steps, data, nodes, seed)
    mine = Batch(kept.parts, kept.facts)
    numbers = share(nodes["stability_samples"], *batch)
    prune_halves(data, nodes, seed=seed, parts=mine, numbers=numbers)
    mine.write(halves)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
