"""Patching sweeps of which each job does some layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mechatlas.circuits.batches import Arrays, Batch, part_of, read_batches
from mechatlas.circuits.resume import Parts
from mechatlas.io import UserError

BY_LAYER = " patched"  # ends the names of arrays that have a row for each patch


class LayerBatch(Batch):
    """The parts of one job, kept as they come and then written to one file.

    Parameters
    ----------
    parts : Parts
        Where finished parts are kept, also those of other jobs.
    layers : range
    """

    def __init__(self, parts: Parts, layers: range):
        super().__init__(parts, parts.facts)
        self.layers = layers

    def get(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """Return a part of these layers, computed and stored if it is not there yet."""
        own = f"{name}-L{self.layers.start}-{self.layers.stop}"
        self.found[name] = self.parts.get(own, compute)
        return self.found[name]


class LayerBatches:
    """The parts of all jobs, each joined over layers; takes the place of `Parts`.

    Parameters
    ----------
    paths : sequence of str
        What the jobs wrote, in order of layers.
    facts : mapping
        What decides the parts.

    Raises
    ------
    UserError
        If a file was made from something else.
    """

    def __init__(self, paths: Sequence[str], facts: Mapping[str, Any]):
        self.paths, self.batches = paths, read_batches(paths, facts)

    def get(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """Return a part; ``compute`` is not called.

        Raises
        ------
        UserError
            If a job has not made it.
        """
        parts = [self._part(number, name) for number in range(len(self.paths))]
        return {
            key: np.concatenate([part[key] for part in parts]) if key.endswith(BY_LAYER) else first
            for key, first in parts[0].items()
        }

    def _part(self, number: int, name: str) -> Arrays:
        part = part_of(self.batches[number], name)
        if not part:
            raise UserError(
                f"{self.paths[number]} holds no {name}: it was made on another kind of device; set device to cpu or "
                "cuda, delete the file and run again"
            )
        return part
