"""Put the results of one model beside published numbers.

Inputs: the file of published numbers; the circuits, tables of nodes, roles and lenses of every task, and
cross_task.parquet, all of one model. Output: published.parquet.
"""

from collections.abc import Sequence
from pathlib import Path

from mechatlas.job import job
from mechatlas.circuits.published import beside_published
from mechatlas.io import file_digest, provenance, write_table


def main(numbers: str, circuits: Sequence[str], cross_task: str, name: str, published: str) -> None:
    """Write ``published``; ``circuits`` are the nodes/circuit.json of all tasks, whose neighbours are read as well."""
    folder = Path(circuits[0]).parents[2]
    facts = provenance(model=name, numbers=file_digest(numbers))
    write_table(published, beside_published(numbers, folder, cross_task), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
