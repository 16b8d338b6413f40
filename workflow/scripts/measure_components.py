"""Measure what every component does on one task of one model: patching, roles of heads, lenses.

Inputs: prompts.jsonl, the model folder. Outputs: patching/effects.parquet, pair_effects.parquet and strongest.csv;
roles/heads.parquet; the tables of lens/. ``steps`` is a folder in which finished parts of the patching are kept, so
that a killed run continues. ``batches`` are the files of the jobs in which layers were patched, if there were any
(rule patch_layers).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.component_study import study_components
from mechatlas.circuits.layer_batches import LayerBatches
from mechatlas.circuits.steps import Steps
from mechatlas.circuits.task_data import load_task_data
from mechatlas.io import write_table, write_text
from mechatlas.models.device import pick_device


def main(
    prompts: str,
    model: str,
    name: str,
    settings: Mapping[str, Any],
    patching: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    options: Mapping[str, Any],
    steps: str,
    device: str,
    dtype: str,
    strongest: str,
    batches: Sequence[str] = (),
    bos: str | None = None,
    gpu: int = 0,
    **tables: str,
) -> None:
    """Study the task whose prompts and config entry ``settings`` are given; ``tables`` are the paths of all tables."""
    data = load_task_data(prompts, model, name, pick_device(gpu, device), dtype, bos)
    kept = Steps(steps, data, {}, "circuits/patching.py")
    parts = LayerBatches(batches, kept.facts) if batches else kept.parts
    study = study_components(data, settings, patching, thresholds, parts=parts, **options)
    facts = {**data.facts, "patching": dict(patching), **options}
    for table, path in tables.items():
        write_table(path, study[table], facts)
    write_text(strongest, study["strongest"].to_csv(index=False, float_format="%.6g"), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
