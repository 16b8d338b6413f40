"""Explain every attention head of a model by a program.

Inputs: windows.parquet, the chunk folders with attention patterns, the model folder (tokenizer only).
Outputs: explanations.jsonl, one record per head and control ("none", and "shuffled" if that control is wanted).
Programs are fitted on train windows and chosen on validation windows; test windows are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.fit import explain_layer, settings_from, shuffled_sample
from mechatlas.io import progress, provenance, write_jsonl
from mechatlas.models.device import pick_device


def main(
    windows: str,
    chunks: Sequence[str],
    model: str,
    bos: str | None,
    explainers: Sequence[str],
    programs: Mapping[str, Any],
    controls: Sequence[str],
    seed: int,
    device: str,
    gpu: int,
    explanations: str,
) -> None:
    """Run the explainers that are wanted on all layers; only ``programs`` needs no language model."""
    data = HeadData(windows, chunks, model, bos)
    settings = settings_from(programs, seed)
    place = pick_device(gpu, device)
    records: list[dict[str, Any]] = []
    for layer in progress(range(data.layers), desc="explain layers", unit="layer"):
        train, validation = data.sample("train", layer), data.sample("validation", layer)
        records += explain_layer(layer, train, validation, settings, device=place)
        if "shuffled" in controls:
            shuffled = shuffled_sample(train, seed, layer)
            records += explain_layer(
                layer, shuffled, validation, settings, control="shuffled", device=place
            )
    facts = provenance(
        **data.facts, explainers=list(explainers), programs=dict(programs), seed=seed
    )
    write_jsonl(explanations, records, facts)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
