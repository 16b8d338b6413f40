"""Download WikiText from the Hugging Face hub at a pinned revision.

Output: ``text`` (Parquet: text, one line of the corpus in each row) and ``checksum``, its SHA-256 in the form that
sha256sum -c reads. Needs the network; runs once.
"""

from mechatlas.job import job
from mechatlas.corpus.fetch import fetch_wikitext


def main(text: str, checksum: str, source: str, config: str, split: str, revision: str) -> None:
    """Download the split of the corpus ``config`` at ``revision`` for the source of that key."""
    fetch_wikitext(text, checksum, source=source, config=config, split=split, revision=revision)


if "snakemake" in globals():
    with job(snakemake, offline=False) as arguments:
        main(**arguments)
