"""Draw the transcoders of one model and source, and their attribution graphs, as figures of a paper.

Inputs: of each transcoder evaluation and training, of each graph its public JSON and its consistency.parquet. Output:
a folder of figures (SVG, PDF, PNG), the data behind each (CSV), and captions.json.
"""

from collections.abc import Sequence
from pathlib import Path

from mechatlas.job import job
from mechatlas.figures.paper.files import write_drawn
from mechatlas.figures.paper.transcoders import TranscoderFiles, transcoder_figures
from mechatlas.io import provenance


def main(
    evaluations: Sequence[str],
    training: Sequence[str],
    graphs: Sequence[str],
    consistency: Sequence[str],
    figures: str,
    transcoders: Sequence[str],
    name: str,
    source: str,
) -> None:
    """Draw the results into the folder ``figures``; files are in the order of ``transcoders``, graphs in their own."""
    drawn: dict[str, dict[str, tuple[str, str]]] = {own: {} for own in transcoders}
    for public, table in zip(graphs, consistency, strict=True):
        path = Path(public)
        drawn[path.parents[1].name][path.stem] = public, table
    files = {
        own: TranscoderFiles(evaluation, curve, drawn[own])
        for own, evaluation, curve in zip(transcoders, evaluations, training, strict=True)
    }
    write_drawn(figures, transcoder_figures(files), provenance(model=name, source=source))


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
