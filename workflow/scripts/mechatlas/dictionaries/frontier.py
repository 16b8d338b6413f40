"""The trade of reconstruction against sparsity over several dictionaries, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mechatlas.io import read_table

METRICS = ("fvu", "l0", "loss_recovered_zero", "loss_recovered_mean", "kl", "dead_share")


def frontier_table(evaluations: Mapping[str, str | Path]) -> pd.DataFrame:
    """Return a row per dictionary and layer, with the columns of `METRICS` and the bounds of FVU and L0.

    Parameters
    ----------
    evaluations : mapping
        Name of a dictionary to its evaluation.parquet.
    """
    rows = []
    for name, path in evaluations.items():
        table = read_table(path).set_index(["layer", "metric"])
        for layer in table.index.get_level_values("layer").unique():
            one = table.loc[layer]
            row = {"dictionary": name, "layer": layer, **{m: one["value"][m] for m in METRICS}}
            for metric in ("fvu", "l0"):
                row |= {f"{metric}_{end}": one[end][metric] for end in ("low", "high")}
            rows.append(row)
    return pd.DataFrame(rows).sort_values(["layer", "l0"], ignore_index=True)
