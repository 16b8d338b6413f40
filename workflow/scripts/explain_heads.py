"""Explain attention heads of a model by programs.

Inputs: windows.parquet, the chunk folders with attention patterns, those of the trained model (by whose statistics
heads are chosen if there are more than explain.max_heads), the model folder (tokenizer only), and the batches of
explanations if they were made in jobs of their own (rule fit_heads).
Outputs: explanations/programs.jsonl, one record per head and control ("none", and "shuffled" if it is wanted).
Programs are fitted on train windows and chosen on validation windows; test windows are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.capture.statistics import merged_statistics
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.fit import settings_from
from mechatlas.explain.fit_layers import explain_layers
from mechatlas.explain.selection import heads_to_explain
from mechatlas.io import provenance, read_jsonl, write_jsonl
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
    batches: Sequence[str] = (),
) -> None:
    """Fit programs layer by layer, or gather ``batches`` in which that was done."""
    data = HeadData(windows, chunks, model, bos)
    facts = provenance(**data.facts, max_heads=max_heads, programs=dict(programs), seed=seed)
    if batches:
        write_jsonl(explanations, (line for path in batches for line in read_jsonl(path)), facts)
        return
    wanted = heads_to_explain(merged_statistics(trained_chunks), max_heads)
    place, settings = pick_device(gpu, device), settings_from(programs, seed)
    records = explain_layers(
        data, range(data.layers), wanted, settings, controls=controls, seed=seed, device=place
    )
    write_jsonl(explanations, records, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
