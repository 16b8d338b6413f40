"""Find the circuit of heads and MLPs of one task of one model by ablation, and judge it on held-out prompts.

Inputs: prompts.jsonl, audit.json, the model folder. Outputs: circuit.json, least_harmful.json and the tables of nodes/.
``steps`` is a folder in which every decision is kept as it is made, so that a killed run continues.
``halves`` are the files of the jobs in which halves of the prompts were pruned, if there were any (rule prune_halves).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.batches import Batches
from mechatlas.circuits.circuit_file import write_circuit
from mechatlas.circuits.node_study import node_steps, study_nodes
from mechatlas.circuits.task_data import accepted_shares, load_task_data
from mechatlas.io import write_table
from mechatlas.models.device import pick_device


def main(
    prompts: str,
    audit: str,
    model: str,
    name: str,
    nodes: Mapping[str, Any],
    options: Mapping[str, Any],
    steps: str,
    device: str,
    dtype: str,
    circuit: str,
    least_harmful: str,
    halves: Sequence[str] = (),
    bos: str | None = None,
    gpu: int = 0,
    **tables: str,
) -> None:
    """Study the nodes of the task whose prompts are given; ``tables`` are the paths of all tables."""
    data = load_task_data(prompts, model, name, pick_device(gpu, device), dtype, bos)
    kept = node_steps(steps, data, nodes, options["seed"])
    parts = Batches(halves, kept.facts, kept.parts)
    study = study_nodes(data, nodes, log=kept.log, parts=parts, **options)
    facts = {**data.facts, "nodes": dict(nodes), **options}
    for table, path in tables.items():
        write_table(path, study.tables[table], facts)
    accepted = {"accepted": accepted_shares(audit)}
    for procedure, path in (("greedy", circuit), ("least_harmful", least_harmful)):
        write_circuit(path, study.circuits[procedure].with_facts(accepted), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
