"""Explain the latents of a dictionary by programs.

Inputs: windows.parquet, activations.parquet, the model folder (tokenizer only), and the batches of explanations if they
were made in jobs of their own (rule fit_latents).
Output: explanations/programs.jsonl, one record per latent and control: "none"; if wanted "shuffled" (fitted on shuffled
activations) and "random_direction" (fitted on a random direction that fires as often).
Programs are fitted on train windows and chosen on validation windows; test windows are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.fit import LatentFitSettings, explain_all
from mechatlas.io import provenance, read_jsonl, write_jsonl


def main(
    windows: str,
    activations: str,
    model: str,
    bos: str | None,
    programs: Mapping[str, Any],
    controls: Sequence[str],
    seed: int,
    explanations: str,
    batches: Sequence[str] = (),
) -> None:
    """Fit programs latent by latent, or gather ``batches`` in which that was done."""
    data = LatentData(windows, activations, model, bos)
    facts = provenance(**data.facts, programs=dict(programs), controls=list(controls), seed=seed)
    if batches:
        write_jsonl(explanations, (line for path in batches for line in read_jsonl(path)), facts)
        return
    records = explain_all(data, LatentFitSettings(**programs), controls, seed)
    write_jsonl(explanations, records, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
