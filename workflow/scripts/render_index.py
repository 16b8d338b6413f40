"""Link the reports of all models and sources on one page.

Inputs: the pages, the summaries and the headline numbers, one each for every entry of ``names``; the pages of circuits,
one for each model that has any, and the circuits, one for every entry of ``circuit_names``. Output: index.html.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from mechatlas.figures.index import CircuitEntry, Entry, index_page
from mechatlas.io import provenance, read_json, write_text


def main(
    pages: list[str],
    summaries: list[str],
    headlines: list[str],
    names: list[list[str]],
    index: str,
    circuit_pages: Sequence[str] = (),
    circuits: Sequence[str] = (),
    circuit_names: Sequence[Sequence[str]] = (),
) -> None:
    """Write ``index`` with links relative to it."""
    entries = []
    for (model, source), page, summary, headline in zip(
        names, pages, summaries, headlines, strict=True
    ):
        links = {
            "report": page,
            "table": summary,
            "text": str(Path(summary).with_name("report.md")),
        }
        relative = {words: _relative(path, index) for words, path in links.items()}
        entries.append(Entry(model, source, relative, read_json(headline)))
    page_of = {Path(page).parent.name: _relative(page, index) for page in circuit_pages}
    found = [
        CircuitEntry(model, task, page_of[model], read_json(circuit))
        for (model, task), circuit in zip(circuit_names, circuits, strict=True)
    ]
    write_text(index, index_page(entries, provenance(names=names), found))


def _relative(path: str, index: str) -> str:
    return Path(os.path.relpath(path, Path(index).parent)).as_posix()


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
