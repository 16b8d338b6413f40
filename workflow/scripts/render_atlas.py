"""Write the atlas: static pages in which everything that is known of all models is looked at together.

Inputs: results of all models, sources and tasks, read from the folder ``results``. Output: atlas (a folder with
index.html, data as scripts and the charting library; it opens from disk and asks nothing of any network).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.figures.atlas.build import ModelEntry, write_atlas
from mechatlas.io import provenance


def main(
    results: str,
    models: Mapping[str, Mapping[str, Any]],
    chunks: Sequence[str],
    seed: int,
    atlas: str,
) -> None:
    """Write the folder ``atlas``; ``models`` holds the fields of `ModelEntry` by model."""
    entries = {name: ModelEntry(**entry) for name, entry in models.items()}
    facts = provenance(models={name: entry["sources"] for name, entry in models.items()}, seed=seed)
    write_atlas(atlas, results, entries, chunks, seed, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
