"""Draw the circuits of one model as figures of a paper.

Inputs: the prompts of its tasks, and every table that the page of circuits shows; published.parquet if there is one.
Output: a folder of figures (SVG, PDF, PNG), the data behind each (CSV), and captions.json.
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.figures.circuits.results import read_circuits
from mechatlas.figures.paper.circuits import circuit_figures
from mechatlas.figures.paper.files import write_drawn
from mechatlas.io import provenance, read_provenance, read_table


def main(
    prompts: Sequence[str],
    published: Sequence[str],
    figures: str,
    name: str,
    tasks: Sequence[str],
    folder: str,
    shared: str,
) -> None:
    """Draw the results in ``folder`` (of each task) and ``shared`` (of all) into the folder ``figures``."""
    results = read_circuits(name, tasks, folder, shared)
    table = read_table(published[0]) if published else None
    facts = provenance(model=name, prompts=[read_provenance(path) for path in prompts])
    write_drawn(figures, circuit_figures(results, table), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
