"""Bring the codes of all chunks together: statistics of all latents, events of those that are explained, controls.

Inputs: the folders of codes, the chunk folders (read for random directions only), windows.parquet, the folder
of dictionaries. Outputs: raw_events.parquet, latent_stats.parquet, neighbours.parquet, activations.parquet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mechatlas.job import job
from mechatlas.dictionaries.directions import decoder_directions
from mechatlas.dictionaries.latent_events import EventSettings
from mechatlas.dictionaries.latent_merge import MergeSettings, merge_layers
from mechatlas.io import provenance, read_json, read_provenance, write_table


def main(
    codes: Sequence[str],
    chunks: Sequence[str],
    windows: str,
    weights: str,
    sizes: Mapping[str, Any],
    event_sizes: Mapping[str, int],
    seed: int,
    events: str,
    stats: str,
    neighbours: str,
    activations: str,
) -> None:
    """Go through the layers."""
    settings = MergeSettings(**sizes, events=EventSettings(**event_sizes, seed=seed))
    tables = list(
        merge_layers(
            codes, chunks, windows, lambda layer: decoder_directions(weights, layer), settings
        )
    )
    index = read_json(f"{codes[0]}/index.json")
    facts = provenance(
        **{"codes": read_provenance(f"{codes[0]}/index.json"), "windows": read_provenance(windows)},
        **{"point": index.get("unit", index["point"]), **sizes, **event_sizes, "seed": seed},
    )
    for path, name in (
        (events, "events"),
        (stats, "statistics"),
        (neighbours, "neighbours"),
        (activations, "activations"),
    ):
        write_table(path, pd.concat([getattr(t, name) for t in tables], ignore_index=True), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
