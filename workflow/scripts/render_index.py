"""Link the reports of all models and sources on one page.

Inputs: the pages, the summaries and the headline numbers, one each for every entry of ``names``, and the same of
latents for every entry of ``latent_names``. Output: index.html.
"""

import os
from pathlib import Path

from mechatlas.figures.index import Entry, LatentEntry, index_page
from mechatlas.io import provenance, read_json, write_text


def main(
    pages: list[str],
    summaries: list[str],
    headlines: list[str],
    names: list[list[str]],
    latent_pages: list[str],
    latent_summaries: list[str],
    latent_headlines: list[str],
    latent_names: list[list[str]],
    index: str,
) -> None:
    """Write ``index`` with links relative to it."""
    entries = [
        Entry(*place, _links(page, summary, index), read_json(headline))
        for place, page, summary, headline in zip(names, pages, summaries, headlines, strict=True)
    ]
    files = zip(latent_names, latent_pages, latent_summaries, latent_headlines, strict=True)
    latents = [
        LatentEntry(*place, _links(page, summary, index), read_json(headline))
        for place, page, summary, headline in files
    ]
    facts = provenance(names=names, latents=latent_names)
    write_text(index, index_page(entries, facts, latents))


def _links(page: str, summary: str, index: str) -> dict[str, str]:
    links = {"report": page, "table": summary, "text": str(Path(summary).with_name("report.md"))}
    return {words: _relative(path, index) for words, path in links.items()}


def _relative(path: str, index: str) -> str:
    return Path(os.path.relpath(path, Path(index).parent)).as_posix()


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
