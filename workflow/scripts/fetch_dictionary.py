"""Download one of OpenAI's sparse autoencoders, whole or not at all.

Outputs: the .pt file, its checksum as sha256sum -c reads it, and where it comes from (.source.json). What a killed
download has got is kept and taken up again.
"""

from mechatlas.job import job
from mechatlas.dictionaries.fetch import fetch_openai


def main(
    file: str, checksum: str, record: str, site: str, version: str, layer: int, sha256: str | None
) -> None:
    """Download the file of one layer."""
    fetch_openai(file, checksum, site=site, version=version, layer=layer, sha256=sha256)


if "snakemake" in globals():
    with job(snakemake, offline=False) as arguments:
        main(**arguments)
