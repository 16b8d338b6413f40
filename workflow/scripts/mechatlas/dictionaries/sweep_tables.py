"""Measures of all transcoders of a sweep as tables (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.io import read_provenance, read_table

#: Measures that are compared at equal sparsity.
COMPARED = ("fvu", "kl", "top1_agreement", "replacement_corrected", "completeness_corrected")


def sweep_table(evaluations: Sequence[str | Path]) -> pd.DataFrame:
    """Return a row per transcoder: ``decoders``, ``value``, ``seed`` and each measure with ``_low`` and ``_high``.

    Parameters
    ----------
    evaluations : sequence of paths
        Tables of `mechatlas.circuits.graphs.sweep.measure_point`; what each was trained with is in its provenance.

    Raises
    ------
    UserError
        If a table is missing or damaged.
    """
    rows = []
    for path in evaluations:
        table, facts = read_table(path).set_index("metric"), read_provenance(path)
        row: dict[str, Any] = {
            name: facts[name] for name in ("decoders", "value", "seed", "features")
        }
        for metric in table.index:
            row[metric] = table.loc[metric, "value"]
            row |= {f"{metric}_{end}": table.loc[metric, end] for end in ("low", "high")}
        rows.append(row)
    order = ["decoders", "value", "seed"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


def at_equal_sparsity(table: pd.DataFrame) -> pd.DataFrame:
    """Compare kinds of decoders at the same number of active features.

    Each curve is read, by linear interpolation, in the middle of the range of ``l0`` that all kinds and seeds share.

    Returns
    -------
    DataFrame
        For each measure of `COMPARED` that there is: ``metric``, ``decoders``, ``l0``, ``value`` (mean over seeds),
        ``low`` and ``high`` (the extremes over seeds), ``seeds``. Empty if the ranges do not overlap.
    """
    curves = {key: part.sort_values("l0") for key, part in table.groupby(["decoders", "seed"])}
    low = max(float(part["l0"].min()) for part in curves.values())
    high = min(float(part["l0"].max()) for part in curves.values())
    rows, middle = [], (low + high) / 2
    for metric in [name for name in COMPARED if name in table and low <= high]:
        found: dict[str, list[float]] = {}
        for (kind, _), part in curves.items():
            value = np.interp(middle, part["l0"].to_numpy(), part[metric].to_numpy())
            found.setdefault(kind, []).append(float(value))
        rows += [
            (metric, kind, middle, np.mean(v), min(v), max(v), len(v)) for kind, v in found.items()
        ]
    names = ["metric", "decoders", "l0", "value", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=names)
