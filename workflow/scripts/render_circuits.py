"""Execute the notebook of one model's circuits and render it as one self-contained page.

Inputs: the notebook, and the result files that it shows. Outputs: html (the page) and notebook_out (the executed
notebook, the same bytes in every run). While it runs, and after a failure, the notebook is at ``notebook_log``.
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.figures.notebook import render_notebook
from mechatlas.io import provenance, read_provenance


def main(
    notebook: str,
    html: str,
    notebook_out: str,
    notebook_log: str,
    name: str,
    tasks: Sequence[str],
    prompts: Sequence[str],
    published: Sequence[str],
    folder: str,
    shared: str,
) -> None:
    """Run the notebook on the results in ``folder`` (of each task) and ``shared`` (of all) and write both outputs."""
    parameters = {
        "name": name,
        "tasks": list(tasks),
        "folder": folder,
        "shared": shared,
        "prompts": list(prompts),
        "published": published[0] if published else "",
    }
    facts = provenance(model=name, prompts=[read_provenance(path) for path in prompts])
    title = f"Circuits of {name}"
    paths = {"notebook_out": notebook_out, "html": html}
    render_notebook(notebook, notebook_log, parameters, title, facts, **paths)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, notebook_log=str(snakemake.log.notebook))
