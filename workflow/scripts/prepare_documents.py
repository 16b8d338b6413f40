"""Read or generate the documents of a source.

Input: ``files`` (none for generated text). Output: ``documents`` (Parquet: doc, text).
"""

from collections.abc import Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.corpus.documents import prepare_documents


def main(
    documents: str, source: str, settings: dict[str, Any], seed: int, files: Sequence[str] = ()
) -> None:
    """Write the documents of the config entry ``settings`` of a source."""
    prepare_documents(documents, source=source, settings=settings, files=files, seed=seed)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
