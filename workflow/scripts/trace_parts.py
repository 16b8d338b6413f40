"""Do some of the independent parts of the edges of a model on one task, for `trace_edges` to gather.

Inputs: prompts.jsonl, the model folder. Output: exact effects of edges into some layers, orders of ACDC, the smallest
circuit, curves, paths, as they fall to this job. ``steps`` is a folder in which decisions and finished pairs are kept,
so that a killed run continues.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.batches import Batch
from mechatlas.circuits.edge_parts import EdgeSteps, trace_parts
from mechatlas.circuits.resume import Afresh
from mechatlas.circuits.task_data import load_task_data
from mechatlas.models.device import pick_device


def main(
    prompts: str,
    model: str,
    name: str,
    batch: Sequence[int],
    edges: Mapping[str, Any],
    seed: int,
    steps: str,
    device: str,
    dtype: str,
    parts: str,
    bos: str | None = None,
    gpu: int = 0,
) -> None:
    """Do parts of the task whose prompts are given; ``batch`` is the number of this job and how many there are."""
    data = load_task_data(prompts, model, name, pick_device(gpu, device), dtype, bos)
    kept = EdgeSteps(steps, data, edges, seed)
    mine = Batch(Afresh(), kept.parts_facts)
    trace_parts(data, edges, kept, mine, batch, seed=seed)
    mine.write(parts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
