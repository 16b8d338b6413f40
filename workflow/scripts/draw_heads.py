"""Draw the explanations of one model's heads as figures of a paper.

Inputs: explanations, scores, clusters and the replacement curve of one model and source. Output: a folder of figures
(SVG, PDF, PNG), the data behind each (CSV), and captions.json.
"""

from mechatlas.job import job
from mechatlas.figures.paper.files import write_drawn
from mechatlas.figures.paper.heads import head_figures
from mechatlas.figures.results import read_results
from mechatlas.io import provenance, read_provenance


def main(
    explanations: str,
    scores: str,
    clusters: str,
    curve: str,
    figures: str,
    name: str,
    source: str,
) -> None:
    """Draw the results into the folder ``figures``."""
    results = read_results(explanations, scores, clusters, curve)
    facts = provenance(model=name, source=source, scores=read_provenance(scores))
    write_drawn(figures, head_figures(results), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
