"""Draw reconstruction against sparsity for all dictionaries of a model and source.

Inputs: their evaluation.parquet. Outputs: frontier.parquet (a row per dictionary and layer), frontier.svg and .png.
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.dictionaries.frontier import frontier_table
from mechatlas.figures.dictionaries import frontier
from mechatlas.figures.style import write_figure
from mechatlas.io import provenance, write_table


def main(
    evaluations: Sequence[str],
    dictionaries: Sequence[str],
    name: str,
    source: str,
    table: str,
    svg: str,
    png: str,
) -> None:
    """Collect the evaluations and draw them."""
    points = frontier_table(dict(zip(dictionaries, evaluations, strict=True)))
    write_table(table, points, provenance(model=name, source=source))
    write_figure(frontier(points), svg, png)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
