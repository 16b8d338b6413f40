"""Explain some latents of a dictionary by programs, for `explain_latents` to gather.

Inputs: as of explain_latents. Output: a batch of the lines of explanations/programs.jsonl.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.fit import LatentFitSettings, explain_all
from mechatlas.io import provenance, write_jsonl
from mechatlas.spread import share


def main(
    windows: str,
    activations: str,
    model: str,
    bos: str | None,
    batch: Sequence[int],
    programs: Mapping[str, Any],
    controls: Sequence[str],
    seed: int,
    explanations: str,
) -> None:
    """Fit programs latent by latent; ``batch`` is the number of this batch and how many there are."""
    data = LatentData(windows, activations, model, bos)
    mine = [data.latents[i] for i in share(len(data.latents), *batch)]
    records = explain_all(data, LatentFitSettings(**programs), controls, seed, mine)
    write_jsonl(explanations, records, provenance(**data.facts, batch=list(batch), seed=seed))


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
