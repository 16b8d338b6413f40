"""Score the edges of a model on one task and find circuits of edges.

Inputs: prompts.jsonl, the model folder. Outputs: circuit.json, acdc.json and the tables of edges/. ``steps`` is a
folder in which decisions and finished pairs are kept, so that a killed run continues. ``parts`` are the files of the
jobs in which parts were done, if there were any (rule trace_parts).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.batches import Batches
from mechatlas.circuits.circuit_file import write_circuit
from mechatlas.circuits.edge_parts import EdgeSteps
from mechatlas.circuits.edge_study import study_edges
from mechatlas.circuits.resume import Afresh
from mechatlas.circuits.task_data import load_task_data
from mechatlas.io import write_table
from mechatlas.models.device import pick_device


def main(
    prompts: str,
    model: str,
    name: str,
    edges: Mapping[str, Any],
    options: Mapping[str, Any],
    steps: str,
    device: str,
    dtype: str,
    circuit: str,
    acdc: str,
    parts: Sequence[str] = (),
    bos: str | None = None,
    gpu: int = 0,
    **tables: str,
) -> None:
    """Study the edges of the task whose prompts are given; ``tables`` are the paths of all tables."""
    data = load_task_data(prompts, model, name, pick_device(gpu, device), dtype, bos)
    kept = EdgeSteps(steps, data, edges, options["seed"])
    done = Batches(parts, kept.parts_facts, Afresh())
    study = study_edges(data, edges, log=kept.log, parts=kept.parts, done=done, **options)
    facts = {**data.facts, "edges": dict(edges), **options}
    for table, path in tables.items():
        write_table(path, study.tables[table], facts)
    write_circuit(circuit, study.circuit, facts)
    write_circuit(acdc, study.acdc, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
