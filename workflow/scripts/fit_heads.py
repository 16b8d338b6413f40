"""Explain the attention heads of some layers by programs, for `explain_heads` to gather.

Inputs: as of explain_heads. Output: a batch of the lines of explanations/programs.jsonl.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.capture.statistics import merged_statistics
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.fit import settings_from
from mechatlas.explain.fit_layers import explain_layers
from mechatlas.explain.selection import heads_to_explain
from mechatlas.io import provenance, write_jsonl
from mechatlas.models.device import pick_device
from mechatlas.spread import share


def main(
    windows: str,
    chunks: Sequence[str],
    trained_chunks: Sequence[str],
    model: str,
    bos: str | None,
    batch: Sequence[int],
    max_heads: int,
    programs: Mapping[str, Any],
    controls: Sequence[str],
    seed: int,
    device: str,
    gpu: int,
    explanations: str,
) -> None:
    """Fit programs layer by layer; ``batch`` is the number of this batch and how many there are."""
    data = HeadData(windows, chunks, model, bos)
    wanted = heads_to_explain(merged_statistics(trained_chunks), max_heads)
    place, settings = pick_device(gpu, device), settings_from(programs, seed)
    records = explain_layers(
        data,
        share(data.layers, *batch),
        wanted,
        settings,
        controls=controls,
        seed=seed,
        device=place,
    )
    write_jsonl(explanations, records, provenance(**data.facts, batch=list(batch), seed=seed))


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
