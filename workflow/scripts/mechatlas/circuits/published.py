"""Our numbers beside published ones.

A file of published numbers is JSON with ``source`` (citation), ``notes`` and ``rows``, each with ``task``,
``quantity``, ``item`` (a component, a circuit, or empty) and ``value``. `QUANTITIES` says what there is of each in our
files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.circuits.components import head_name, mlp_name
from mechatlas.io import UserError, read_json, read_table

COLUMNS = ("task", "quantity", "item", "ours", "published", "difference", "source")


@dataclass(frozen=True)
class Found:
    """Our results of one task.

    Attributes
    ----------
    task : str
    folder : Path
        ``results/{model}/tasks/{task}``.
    cross_task : DataFrame
        ``cross_task.parquet`` of the model.
    """

    task: str
    folder: Path
    cross_task: pd.DataFrame

    @cached_property
    def circuit(self) -> dict[str, Any]:
        """nodes/circuit.json."""
        return read_json(self.folder / "nodes" / "circuit.json")

    @cached_property
    def members(self) -> set[str]:
        """Names of the nodes of the circuit."""
        heads = {head_name(*head) for head in self.circuit["heads"]}
        return heads | {mlp_name(layer) for layer in self.circuit["mlps"]}

    def scores(self, split: str) -> dict[str, float]:
        """Return the faithfulness of the circuit on a split."""
        return self.circuit["faithfulness"][split]

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return {}

    def one(self, table: str, column: str, **where: Any) -> float:
        """Return one number of a table, NaN if it has no such row."""
        if table not in self._tables:
            self._tables[table] = read_table(self.folder / f"{table}.parquet")
        return only(self._tables[table], column, where)

    def lacks(self, table: str, component: str) -> bool:
        """Return whether a table has no row of a component."""
        return bool(np.isnan(self.one(table, "layer", component=component)))


def only(table: pd.DataFrame, column: str, where: Mapping[str, Any]) -> float:
    """Return the number in ``column`` of the one row with these values, NaN without one."""
    if column not in table or not set(where) <= set(table):
        return float("nan")
    for name, value in where.items():
        table = table[table[name] == value]
    return float(table[column].iloc[0]) if len(table) == 1 else float("nan")


def _in_circuit(found: Found, item: str) -> float:
    """1 or 0; NaN for a component that the model does not have."""
    known = found.one("nodes/effects", "value", component=item, base="full")
    return float("nan") if np.isnan(known) else float(item in found.members)


def _without(base: str) -> Callable[[Found, str], float]:
    def percent(found: Found, item: str) -> float:
        split = "discovery" if base == "full" else "held_out"
        value = found.one("nodes/effects", "value", component=item, base=base)
        return 100 * value / found.scores(split)["full"]

    return percent


def _ov(target: str) -> Callable[[Found, str], float]:
    return lambda found, item: (
        100 * found.one("lens/ov", "share", component=item, sign=1, target=target)
    )


def _attention(query: str, key: str) -> Callable[[Found, str], float]:
    return lambda found, item: found.one("roles/heads", f"attention_{query}_{key}", component=item)


def _on_this_task(found: Found, item: str) -> float:
    return only(found.cross_task, "percent", {"circuit": item, "data": found.task})


def _transition(found: Found, item: str) -> float:
    share = found.one("lens/transitions", "earlier_share", layer=int(item.removeprefix("L")))
    return 100 * share


def _role(label: str) -> Callable[[Found, str], float]:
    def has(found: Found, item: str) -> float:
        if found.lacks("roles/heads", item):
            return float("nan")
        table = read_table(found.folder / "roles" / "heads.parquet", ["component", "labels"])
        labels = table.set_index("component")["labels"].get(item, "")
        return float(label in labels.split(", "))

    return has


ROLES = (
    *("mover", "negative mover", "inhibition", "induction", "duplicate token"),
    "previous token",
)
QUANTITIES: dict[str, Callable[[Found, str], float]] = {
    "full logit difference": lambda found, item: found.scores("discovery")["full"],
    "circuit percent": lambda found, item: found.scores("discovery")["percent"],
    "percent left without it": _without("full"),
    "percent left without it, circuit": _without("circuit"),
    "in circuit": _in_circuit,
    "circuit percent on this task": _on_this_task,
    "OV copy percent": _ov("copy"),
    "OV next percent": _ov("next"),
    "OV ordinal percent": _ov("ordinal"),
    "attention m3 to m2": _attention("m3", "m2"),
    "attention end to m3": _attention("end", "m3"),
    "logit lens: earlier member becomes answer, percent": _transition,
    **{f"role: {label}": _role(label) for label in ROLES},
}


def beside_published(path: str | Path, folder: str | Path, cross_task: str | Path) -> pd.DataFrame:
    """Put our numbers beside those of a file.

    Parameters
    ----------
    path : str or Path
        Published numbers.
    folder : str or Path
        ``results/{model}/tasks``; published tasks that are not in it are left out.
    cross_task : str or Path
        ``cross_task.parquet``.

    Returns
    -------
    DataFrame
        The columns in `COLUMNS`; ``ours`` and ``difference`` (ours - published) are NaN where we have no such number.

    Raises
    ------
    UserError
        If the file is damaged or has a quantity that is not in `QUANTITIES`.
    """
    raw = read_json(path)
    table, tasks = read_table(cross_task), {}
    rows = []
    for number, row in enumerate(_rows(path, raw), 1):
        if row["quantity"] not in QUANTITIES:
            raise UserError(
                f"{path}, row {number}: quantity {row['quantity']!r} is not known; choose from {', '.join(QUANTITIES)}"
            )
        name = row["task"]
        if not (Path(folder) / name / "nodes" / "circuit.json").exists():
            continue
        found = tasks.setdefault(name, Found(name, Path(folder) / name, table))
        ours = QUANTITIES[row["quantity"]](found, row["item"])
        value = float(row["value"])
        rows.append([name, row["quantity"], row["item"], ours, value, ours - value, raw["source"]])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(path: str | Path, raw: Any) -> list[dict[str, Any]]:
    fields = ("task", "quantity", "item", "value")
    sound = isinstance(raw, dict) and {"source", "rows"} <= raw.keys()
    if not sound or not all(isinstance(r, dict) and set(fields) <= r.keys() for r in raw["rows"]):
        raise UserError(
            f"{path}: published numbers need a source and rows with {', '.join(fields)}; see resources/reference"
        )
    return raw["rows"]
