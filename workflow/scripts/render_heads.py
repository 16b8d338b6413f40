"""Execute the notebook of one model and source and render it as one self-contained page.

Inputs: the notebook, and the result files that it shows. Outputs: html (the page) and notebook_out (the executed
notebook, the same bytes in every run). While it runs, and after a failure, the notebook is at ``notebook_log``.
"""

from typing import Any

from mechatlas.job import job
from mechatlas.figures.notebook import render_notebook
from mechatlas.io import provenance, read_provenance


def main(
    notebook: str,
    html: str,
    notebook_out: str,
    notebook_log: str,
    name: str,
    source: str,
    scores: str,
    **files: Any,
) -> None:
    """Run the notebook on ``scores`` and the other result ``files`` and write both outputs."""
    parameters = {"name": name, "source": source, "scores": scores, **files}
    facts = provenance(model=name, source=source, scores=read_provenance(scores))
    title = f"Attention heads of {name} on {source}"
    paths = {"notebook_out": notebook_out, "html": html}
    render_notebook(notebook, notebook_log, parameters, title, facts, **paths)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, notebook_log=str(snakemake.log.notebook))
