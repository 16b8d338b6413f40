"""Make the clean and corrupted prompts of a task for one model and report what the model does on them.

Input: a model folder. Output: ``prompts`` (JSON Lines, one pair per line), ``audit`` (JSON: one row for each split and
family).
"""

from typing import Any

from mechatlas.job import job
from mechatlas.models.device import pick_device
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load
from mechatlas.tasks.prepare import prepare_prompts


def main(
    prompts: str,
    audit: str,
    model: str,
    name: str,
    task: str,
    settings: dict[str, Any],
    seed: int,
    device: str,
    dtype: str,
    bos: str | None = None,
    gpu: int = 0,
) -> None:
    """Write the prompts of the config entry ``settings`` of a task for the model ``name`` in the folder ``model``."""
    prepare_prompts(
        prompts,
        audit,
        name=name,
        task=task,
        settings=settings,
        model=load(model, device=pick_device(gpu, device), dtype=dtype),
        tokenizer=load_tokenizer(model, bos),
        seed=seed,
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
