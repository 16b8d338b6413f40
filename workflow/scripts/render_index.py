"""Link the reports of all models and sources on one page.

Inputs: the pages, the summaries and the headline numbers, one each for every entry of ``names``; the same of latents
for every entry of ``latent_names``; the pages of circuits, one for each model that has any, and the circuits, one for
every entry of ``circuit_names``; the pages of transcoders, one for every entry of ``transcoder_names``. Output:
index.html.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from mechatlas.figures.index import (
    CircuitEntry,
    Entry,
    LatentEntry,
    TranscoderEntry,
    index_page,
)
from mechatlas.io import provenance, read_json, write_text


def main(
    pages: Sequence[str],
    summaries: Sequence[str],
    headlines: Sequence[str],
    names: Sequence[Sequence[str]],
    index: str,
    latent_pages: Sequence[str] = (),
    latent_summaries: Sequence[str] = (),
    latent_headlines: Sequence[str] = (),
    latent_names: Sequence[Sequence[str]] = (),
    circuit_pages: Sequence[str] = (),
    circuits: Sequence[str] = (),
    circuit_names: Sequence[Sequence[str]] = (),
    transcoder_pages: Sequence[str] = (),
    transcoder_names: Sequence[Sequence[str]] = (),
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
    page_of = {Path(page).parent.name: _relative(page, index) for page in circuit_pages}
    found = [
        CircuitEntry(model, task, page_of[model], read_json(circuit))
        for (model, task), circuit in zip(circuit_names, circuits, strict=True)
    ]
    transcoders = [
        TranscoderEntry(*place, _relative(page, index))
        for place, page in zip(transcoder_names, transcoder_pages, strict=True)
    ]
    facts = provenance(
        names=names, latents=latent_names, circuits=circuit_names, transcoders=transcoder_names
    )
    text = index_page(entries, facts, circuits=found, latents=latents, transcoders=transcoders)
    write_text(index, text)


def _links(page: str, summary: str, index: str) -> dict[str, str]:
    links = {"report": page, "table": summary, "text": str(Path(summary).with_name("report.md"))}
    return {words: _relative(path, index) for words, path in links.items()}


def _relative(path: str, index: str) -> str:
    return Path(os.path.relpath(path, Path(index).parent)).as_posix()


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
