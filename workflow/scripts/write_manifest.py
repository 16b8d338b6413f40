"""Write the SHA-256 of every result file.

Input: files (every result file and folder). Output: manifest (one line a file, as sha256sum writes it).
"""

from mechatlas.job import job
from mechatlas.io.manifest import write_manifest


def main(files: list[str], manifest: str) -> None:
    """Write ``manifest`` over ``files``, the content of folders and the provenance sidecars included."""
    write_manifest(files, manifest)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
