"""Draw error, divergence and replacement score against active features for all transcoders of a sweep.

Inputs: their evaluation.parquet. Outputs: frontier.parquet (a row per transcoder), compared.parquet (kinds of decoders
at equal sparsity), frontier.svg and .png.
"""

from collections.abc import Mapping, Sequence

from mechatlas.job import job
from mechatlas.dictionaries.sweep_tables import at_equal_sparsity, sweep_table
from mechatlas.figures.style import write_figure
from mechatlas.figures.transcoders import sweep_frontier
from mechatlas.io import provenance, write_table


def main(
    evaluations: Sequence[str],
    about: Mapping[str, str],
    table: str,
    compared: str,
    svg: str,
    png: str,
) -> None:
    """Collect the evaluations and draw them."""
    points = sweep_table(evaluations)
    write_table(table, points, provenance(**about))
    write_table(compared, at_equal_sparsity(points), provenance(**about))
    write_figure(sweep_frontier(points), svg, png)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
