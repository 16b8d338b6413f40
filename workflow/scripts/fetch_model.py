"""Download a model folder of the Hugging Face hub at a pinned revision.

Output: ``folder`` (config, tokenizer and safetensors weights). Needs the network; runs once.
"""

from mechatlas.job import job
from mechatlas.models.fetch import fetch_model


def main(folder: str, hub: str, revision: str) -> None:
    """Download ``hub`` at ``revision`` to ``folder``."""
    fetch_model(hub, revision, folder)


if "snakemake" in globals():
    with job(snakemake, offline=False) as arguments:
        main(**arguments)
