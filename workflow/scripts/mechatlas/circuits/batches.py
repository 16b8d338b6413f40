"""Work of which each job does some parts: what a job writes, and how the one that needs all parts reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.circuits.resume import Store
from mechatlas.io import UserError, read_arrays, read_provenance, write_arrays

Arrays = dict[str, np.ndarray]


class Batch:
    """The parts that one job makes, and then writes to one file.

    Parameters
    ----------
    parts : Store
        Where finished parts are kept until then.
    facts : mapping
        What decides the parts.
    """

    def __init__(self, parts: Store, facts: Mapping[str, Any]):
        self.parts, self.facts = parts, facts
        self.found: dict[str, Arrays] = {}

    def get(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """Return a part, which the file will have."""
        self.found[name] = self.parts.get(name, compute)
        return self.found[name]

    def write(self, path: str | Path) -> None:
        """Write all parts that were asked for."""
        arrays = {
            f"{name}/{key}": x for name, part in self.found.items() for key, x in part.items()
        }
        write_arrays(path, arrays, self.facts)


class Batches:
    """The parts that jobs have made, and those that none has.

    Parameters
    ----------
    paths : sequence of str
        What the jobs wrote.
    facts : mapping
        What decides the parts.
    otherwise : Store
        Gives the parts that are in no file.

    Raises
    ------
    UserError
        If a file was made from something else.
    """

    def __init__(self, paths: Sequence[str], facts: Mapping[str, Any], otherwise: Store):
        self.batches, self.otherwise = read_batches(paths, facts), otherwise

    def get(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """Return a part."""
        for batch in self.batches:
            if part := part_of(batch, name):
                return part
        return self.otherwise.get(name, compute)


def read_batches(paths: Sequence[str], facts: Mapping[str, Any]) -> list[Arrays]:
    """Read what jobs wrote; raise `UserError` if a file was made from something else."""
    for path in paths:
        if read_provenance(path) != dict(facts):
            raise UserError(
                f"{path} is of another model, other prompts or another version; delete it and run again"
            )
    return [read_arrays(path) for path in paths]


def part_of(batch: Arrays, name: str) -> Arrays:
    """Return the arrays of one part of a batch, none if it lacks that part."""
    start = f"{name}/"
    return {key[len(start) :]: x for key, x in batch.items() if key.startswith(start)}
