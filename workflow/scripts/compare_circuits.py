"""Compare the circuits of all tasks of one model, on one another's prompts and by their removal.

Inputs: prompts.jsonl and the circuit files of every task, further circuits, files with questions, the model folder.
Outputs: overlap.parquet, cross_task.parquet, generation.parquet and generation_random.parquet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.circuit_file import read_circuit
from mechatlas.circuits.compare import (
    cross_task_table,
    file_questions,
    generation_tables,
    overlap_table,
    task_questions,
)
from mechatlas.circuits.task_data import load_tasks
from mechatlas.io import provenance, write_table
from mechatlas.models.device import pick_device
from mechatlas.tasks.questions import make_questions


def main(
    prompts: Sequence[str],
    circuits: Sequence[str],
    least_harmful: Sequence[str],
    edge_circuits: Sequence[str],
    extra: Sequence[str],
    questions: Sequence[str],
    model: str,
    name: str,
    extra_names: Sequence[str],
    settings: Mapping[str, Any],
    ablation: Mapping[str, str],
    seed: int,
    device: str,
    dtype: str,
    overlap: str,
    cross_task: str,
    generation: str,
    generation_random: str,
    bos: str | None = None,
    gpu: int = 0,
) -> None:
    """Compare circuits that were found, and those of ``extra`` files, which are named by ``extra_names``."""
    tasks = load_tasks(prompts, model, name, pick_device(gpu, device), dtype, bos)
    first = next(iter(tasks.values()))
    files = {"nodes": circuits, "least_harmful": least_harmful, "edges": edge_circuits}
    found = {
        method: {t: read_circuit(p, first.model).keep for t, p in zip(tasks, paths, strict=True)}
        for method, paths in files.items()
    }
    given = {
        n: read_circuit(path, first.model, any_weights=True).keep
        for n, path in zip(extra_names, extra, strict=True)
    }
    facts = provenance(model=name, model_hash=first.model.hash, tasks=list(tasks), seed=seed)
    write_table(overlap, overlap_table(first.model, found), facts)
    every = found["nodes"] | given
    write_table(cross_task, cross_task_table(tasks, every, ablation, seed=seed), facts)
    asked = {
        t: task_questions(data, settings["prompts"], settings["tokens"])
        for t, data in tasks.items()
    }
    how = {"bos": first.batch.bos, "seed": seed}
    for key, entry in settings["questions"].items():
        asked[key] = make_questions(key, entry, first.tokenizer, **how)
    for path in questions:
        asked |= file_questions(path, first.tokenizer, bos=first.batch.bos)
    tables = generation_tables(tasks, every, settings, asked, seed=seed)
    for path, table in zip((generation, generation_random), tables, strict=True):
        write_table(path, table, facts | {"generation": dict(settings)})


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
