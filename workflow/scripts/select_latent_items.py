"""Select the test items that a judge is asked about, for all explained latents and planted ones.

Inputs: programs (explanations of the embedded explainer, to compare with, if there are any), windows.parquet,
activations.parquet, the model folder (tokenizer only).
Output: items.parquet, with what program and token look-up predict at each item. Items come from test documents; the
look-up is fitted on train documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mechatlas.job import job
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.records import latent_programs, read_latent_explanations
from mechatlas.io import progress, provenance, read_provenance, write_table
from mechatlas.score.judge.items import ItemSettings
from mechatlas.score.judge.latent_selection import layer_latent_items, planted_latent_items


def main(
    programs: Sequence[str],
    windows: str,
    activations: str,
    model: str,
    bos: str | None,
    scorers: Sequence[str],
    sizes: Mapping[str, int],
    planted: int,
    active_share: float,
    seed: int,
    test_items: str,
) -> None:
    """Go through the layers; the planted latents come first."""
    data = LatentData(windows, activations, model, bos)
    settings = ItemSettings(**sizes, seed=seed)
    known = latent_programs(read_latent_explanations(programs), "programs")
    frames = []
    if planted:
        frames.append(planted_latent_items(data, planted, scorers, settings, active_share))
    layers = sorted({latent.layer for latent in data.latents})
    for layer in progress(layers, desc="select items", unit="layer"):
        here = [latent for latent in data.latents if latent.layer == layer]
        frames.append(layer_latent_items(data, here, known, scorers, settings, active_share))
    facts: dict[str, Any] = provenance(
        **data.facts,
        programs=[read_provenance(path) for path in programs],
        scorers=list(scorers),
        sizes=dict(sizes),
        planted=planted,
        active_share=active_share,
        seed=seed,
    )
    write_table(test_items, pd.concat(frames, ignore_index=True), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
