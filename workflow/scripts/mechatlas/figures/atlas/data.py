"""Data of pages: numbers in few digits, texts in which nothing hides, files that a page on disk can load.

A page that is opened from disk may not fetch JSON, but it may load a script. A data file is therefore one call of one
function with a name and a JSON value; all texts stay JSON strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.figures.html import visible_characters

#: Significant digits of numbers: more than any page shows.
DIGITS = 4


def number(value: Any, digits: int = DIGITS) -> float | int | None:
    """Return a number with few significant digits; None for a missing one."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def numbers(values: Iterable[Any]) -> list[float | int | None]:
    """Return `number` of each value."""
    return [number(value) for value in values]


def truth(value: Any) -> bool | None:
    """Return True, False or, for a missing value, None."""
    return None if value is None or pd.isna(value) else bool(value)


def texts(tokens: Iterable[str]) -> list[str]:
    """Return tokens with hidden characters spelled out; an empty one becomes the sign of the empty set."""
    return [visible_characters(token) or "∅" for token in tokens]


def write_data(folder: Path, name: str, value: Any) -> None:
    """Write a data file ``data/{name}.js``; names are parts separated by slashes."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    path.write_text(f"ATLAS.put({json.dumps(name)},{content});\n", encoding="ascii")


def interval(row: Mapping[str, Any], value: str, low: str = "", high: str = "") -> list[Any]:
    """Return ``[value, low, high]`` of a row, whose ends are named after the value by default."""
    return numbers(
        row.get(name) for name in (value, low or f"{value}_low", high or f"{value}_high")
    )


def score_tree(table: pd.DataFrame, keys: Sequence[str]) -> dict[Any, dict[str, Any]]:
    """Return key -> explainer -> metric -> control -> ``[value, low, high]``, or the reason why there is no score.

    One pass over the rows: groups of data frames would take longer than all the rest.
    """
    found: dict[Any, dict[str, Any]] = {}
    columns = [*keys, "explainer", "metric", "control", "status", "value", "low", "high", "reason"]
    for row in table[columns].itertuples(index=False, name=None):
        *key, explainer, metric, control, status, value, low, high, reason = row
        entry = numbers((value, low, high)) if status == "scored" else str(reason)
        mine = found.setdefault(tuple(key), {}).setdefault(explainer, {})
        mine.setdefault(metric, {})[control] = entry
    return found


def prefer_test(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the rows of test documents, and all rows of keys that have none there."""
    names = pd.MultiIndex.from_frame(rows[list(keys)])
    test = (rows["split"] == "test").to_numpy()
    return rows[test | ~names.isin(names[test])]
