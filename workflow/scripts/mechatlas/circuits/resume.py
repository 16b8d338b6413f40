"""What a killed search or sweep has already found, so that it continues where it stopped.

Both kinds of store belong to a set of facts (model, data, settings, code); under other facts they start empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mechatlas.io import read_arrays, write_arrays, write_text

logger = logging.getLogger("mechatlas")


class StepLog:
    """Decisions of a search, appended to a JSON Lines file as they are made.

    Parameters
    ----------
    path : str or Path
    facts : mapping
        Plain JSON values; they are the file's first line.

    Attributes
    ----------
    decided : list of dict
        Records of an earlier run under the same facts; a line that was cut off while it was written is dropped.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, Any]):
        self.path, self.decided = Path(path), []
        head, lines = json.dumps(facts, sort_keys=True), []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = [line for line in lines if line.endswith("\n")]
        if lines and lines[0].rstrip("\n") == head:
            self.decided = [json.loads(line) for line in lines[1:]]
            logger.info("%s: continues after %d steps", self.path, len(self.decided))
        write_text(self.path, head + "\n" + "".join(json.dumps(r) + "\n" for r in self.decided))

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Append a record; it is in the file when this returns."""
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")


class Store(Protocol):
    """What gives parts of a computation, from wherever they are, or computes them."""

    def get(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return a part."""


class Afresh:
    """Keeps nothing."""

    def get(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Compute a part."""
        return dict(compute())


class Parts:
    """Finished parts of a computation, each in a file of its own.

    Parameters
    ----------
    folder : str or Path
        Parts of different facts lie in different folders below it.
    facts : mapping
        Plain JSON values.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]):
        self.facts = dict(facts)
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / digest[:16]

    def get(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return a part, computed and stored if it is not there yet."""
        short = re.sub(r"[^\w.+-]", "_", name)[:120]
        if short != name:
            short += f"-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        path = self.folder / f"{short}.safetensors"
        if not path.exists():
            write_arrays(path, compute(), self.facts)
        return read_arrays(path)
