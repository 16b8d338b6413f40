"""Where the studies of a task keep what they have found, so that a killed job continues where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechatlas.circuits.resume import Parts, StepLog
from mechatlas.circuits.task_data import TaskData
from mechatlas.io.closure import closure_digest
from mechatlas.io.digest import PACKAGE


class Steps:
    """The stores of one job; they are empty under other facts than those of an earlier run.

    Parameters
    ----------
    folder : str or Path
        May be deleted at any time.
    data : TaskData
    settings : mapping
        Whatever else decides what is kept.
    *modules : str
        Modules of this package whose code, with what they import, decides it.

    Attributes
    ----------
    parts : Parts
    """

    def __init__(
        self, folder: str | Path, data: TaskData, settings: Mapping[str, Any], *modules: str
    ):
        self.folder = Path(folder)
        self.facts = {
            **data.facts,
            "dtype": str(data.model.dtype),
            "settings": dict(settings),
            "code": closure_digest(*(PACKAGE / module for module in modules)),
        }
        self.parts = Parts(self.folder, self.facts)

    def log(self, name: str) -> StepLog:
        """Return the log of a search."""
        return StepLog(self.folder / f"{name}.jsonl", self.facts)
