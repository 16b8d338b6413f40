"""Check every result file against the manifest.

Param: manifest (path of the manifest). No output: the job fails and names the files that differ.
"""

from mechatlas.job import job
from mechatlas.io.manifest import verify_manifest


def main(manifest: str) -> None:
    """Raise `UserError` if a file is missing or differs."""
    verify_manifest(manifest)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
