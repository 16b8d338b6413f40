"""Explain attention heads of a model by programs.

Inputs: windows.parquet, the chunk folders with attention patterns, those of the trained model (by whose statistics
heads are chosen if there are more than explain.max_heads), the model folder (tokenizer only).
Outputs: explanations/programs.jsonl, one record per head and control ("none", and "shuffled" if it is wanted).
Programs are fitted on train windows and chosen on validation windows; test windows are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.capture.statistics import merged_statistics
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.fit import explain_layer, settings_from, shuffled_sample
from mechatlas.explain.selection import heads_to_explain
from mechatlas.io import progress, provenance, write_jsonl
from mechatlas.models.device import pick_device


def main(
    windows: str,
    chunks: Sequence[str],
    trained_chunks: Sequence[str],
    model: str,
    bos: str | None,
    max_heads: int,
    programs: Mapping[str, Any],
    controls: Sequence[str],
    seed: int,
    device: str,
    gpu: int,
    explanations: str,
) -> None:
    """Fit programs layer by layer."""
    data = HeadData(windows, chunks, model, bos)
    settings = settings_from(programs, seed)
    place = pick_device(gpu, device)
    wanted = heads_to_explain(merged_statistics(trained_chunks), max_heads)
    records: list[dict[str, Any]] = []
    for layer in progress(range(data.layers), desc="explain layers", unit="layer"):
        heads = [head for at, head in wanted if at == layer]
        train, validation = data.sample("train", layer), data.sample("validation", layer)
        records += explain_layer(layer, train, validation, settings, device=place, heads=heads)
        if "shuffled" in controls:
            shuffled = shuffled_sample(train, seed, layer)
            records += explain_layer(
                *(layer, shuffled, validation, settings),
                control="shuffled",
                device=place,
                heads=heads,
            )
    facts = provenance(**data.facts, max_heads=max_heads, programs=dict(programs), seed=seed)
    write_jsonl(explanations, records, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
