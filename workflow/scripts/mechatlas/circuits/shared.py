"""Circuits of several tasks: what they share, and how one does on the data of another."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation
from mechatlas.circuits.components import Graph
from mechatlas.circuits.evaluate import faithfulness


def cross_task(
    ablations: Mapping[str, Ablation], circuits: Mapping[str, Tensor], *, seed: int
) -> pd.DataFrame:
    """Measure the circuit of every row on the data of every column.

    Returns
    -------
    DataFrame
        ``circuit``, ``data`` and the columns of `faithfulness`.
    """
    keeps, parts = torch.stack(list(circuits.values())), []
    for task, ablation in ablations.items():
        part = faithfulness(ablation, keeps, seed=seed)
        part.insert(0, "circuit", list(circuits))
        part.insert(1, "data", task)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def overlap(graph: Graph, circuits: Mapping[str, Tensor]) -> pd.DataFrame:
    """Compare circuits pairwise: ``first``, ``second``, Jaccard index and shared ones of ``heads`` and of ``mlps``."""
    rows = []
    names = list(circuits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = circuits[first], circuits[second]
            row: dict[str, object] = {"first": first, "second": second}
            for kind, part in {"heads": slice(-1), "mlps": slice(-1, None)}.items():
                mask = torch.zeros_like(a)
                mask[:, part] = True
                both, either = a & b & mask, (a | b) & mask
                row[f"{kind}_jaccard"] = float(both.sum() / either.sum()) if either.any() else 1.0
                row[f"{kind}_shared"] = " ".join(graph.names(both.numpy()))
            rows.append(row)
    return pd.DataFrame(rows)
