"""Check dictionaries that others made against a model, and say where they are.

Inputs: their files and the model folder. Output: ``weights``, a folder with index.json that names format and place of
each layer's dictionary; nothing is copied.
"""

from collections.abc import Mapping
from typing import Any

from mechatlas.job import job
from mechatlas.dictionaries.collection import import_collection
from mechatlas.models.config import read_config


def main(
    entries: Mapping[int, Mapping[str, Any]], model: str, name: str, dictionary: str, weights: str
) -> None:
    """Read each layer's dictionary, refuse what does not fit the model, and write the index."""
    about = {"model": name, "dictionary": dictionary}
    import_collection(weights, entries, read_config(model), about)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
