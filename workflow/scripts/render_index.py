"""Link the reports of all models and sources on one page.

Inputs: the pages, the summaries and the headline numbers, one each for every entry of ``names``. Output: index.html.
"""

import os
from pathlib import Path

from mechatlas.figures.index import Entry, index_page
from mechatlas.io import provenance, read_json, write_text


def main(
    pages: list[str],
    summaries: list[str],
    headlines: list[str],
    names: list[list[str]],
    index: str,
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
    write_text(index, index_page(entries, provenance(names=names)))


def _relative(path: str, index: str) -> str:
    return Path(os.path.relpath(path, Path(index).parent)).as_posix()


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
