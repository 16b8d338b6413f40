"""Draw the dictionaries of one model and source as figures of a paper.

Inputs: frontier.parquet, and of each dictionary evaluation, training (if it was trained here), latent statistics and
scores. Output: a folder of figures (SVG, PDF, PNG), the data behind each (CSV), and captions.json.
"""

from collections.abc import Sequence
from pathlib import Path

from mechatlas.job import job
from mechatlas.figures.paper.dictionaries import DictionaryFiles, dictionary_figures
from mechatlas.figures.paper.files import write_drawn
from mechatlas.io import provenance, read_table


def main(
    frontier: str,
    evaluations: Sequence[str],
    training: Sequence[str],
    statistics: Sequence[str],
    scores: Sequence[str],
    figures: str,
    dictionaries: Sequence[str],
    name: str,
    source: str,
) -> None:
    """Draw the results into the folder ``figures``; all but ``training`` are in the order of ``dictionaries``."""
    trained = {Path(path).parent.name: path for path in training}
    entries = zip(dictionaries, evaluations, statistics, scores, strict=True)
    files = {
        own: DictionaryFiles(evaluation, trained.get(own), stats, values)
        for own, evaluation, stats, values in entries
    }
    facts = provenance(model=name, source=source)
    write_drawn(figures, dictionary_figures(read_table(frontier), files), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
