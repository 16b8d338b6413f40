"""The result files of one model's circuits, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mechatlas.figures.circuits.drawing import edge_rows
from mechatlas.figures.circuits.nodes import circuit_nodes
from mechatlas.io import read_json, read_jsonl, read_table


@dataclass(frozen=True)
class TaskResults:
    """The files of one task (docs/files.md says what is in them).

    Attributes
    ----------
    task : str
    folder : Path
        ``{model}/tasks/{task}``.
    """

    task: str
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        """Return a Parquet table, such as ``lens/direct``."""
        return read_table(self.folder / f"{name}.parquet")

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON file, such as ``nodes/circuit``."""
        return read_json(self.folder / f"{name}.json")

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """Records of prompts.jsonl."""
        return read_jsonl(self.folder / "prompts.jsonl")

    @cached_property
    def effects(self) -> pd.DataFrame:
        """patching/effects.parquet."""
        return self.table("patching/effects")

    @cached_property
    def roles(self) -> pd.DataFrame:
        """roles/heads.parquet."""
        return self.table("roles/heads")

    @cached_property
    def circuit(self) -> dict[str, Any]:
        """nodes/circuit.json."""
        return self.json("nodes/circuit")

    @cached_property
    def edge_circuit(self) -> dict[str, Any]:
        """edges/circuit.json."""
        return self.json("edges/circuit")

    @cached_property
    def edge_effects(self) -> pd.DataFrame:
        """edges/effects.parquet."""
        return self.table("edges/effects")

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes of the circuit, by layer."""
        return circuit_nodes(self.circuit)

    def count(self, split: str) -> int:
        """Return the number of prompts of a split."""
        return sum(record["split"] == split for record in self.prompts)

    @property
    def drawn_effects(self) -> pd.DataFrame:
        """The rows of `edge_effects` whose scores tables and drawings show: exact ones, else the best estimate."""
        known = set(self.edge_effects["method"])
        method = next((m for m in DRAWN_BY if m in known), None)
        return self.edge_effects[self.edge_effects["method"] == method]

    def edge_table(self) -> pd.DataFrame:
        """Return the edges of the edge circuit with the scores of `drawn_effects`."""
        return edge_rows(self.edge_circuit["edges"], self.drawn_effects)


#: The methods whose scores drawings use, the first one that there is.
DRAWN_BY = ("exact", "eap-ig-activations", "eap-ig-inputs", "eap")


@dataclass(frozen=True)
class CircuitResults:
    """The tasks of one model and what compares them.

    Attributes
    ----------
    model : str
    tasks : mapping of str to TaskResults
    shared : Path
        ``{model}/circuits``.
    """

    model: str
    tasks: Mapping[str, TaskResults]
    shared: Path

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of all tasks, such as ``cross_task``."""
        return read_table(self.shared / f"{name}.parquet")


def read_circuits(
    model: str, tasks: Sequence[str], folder: str | Path, shared: str | Path
) -> CircuitResults:
    """Return the results of a model.

    Parameters
    ----------
    model : str
    tasks : sequence of str
    folder : path
        ``{model}/tasks``.
    shared : path
        ``{model}/circuits``.
    """
    found = {task: TaskResults(task, Path(folder, task)) for task in tasks}
    return CircuitResults(model, found, Path(shared))
