"""How much each head attends to BOS and to the query itself, and how much it writes, summed over all pairs.

Sums are kept as integers (in units of a power of two), whose addition does not depend on the order, so that any
division into chunks gives the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechatlas.corpus.windows import SPLITS
from mechatlas.io import read_table

if TYPE_CHECKING:
    from torch import Tensor

# What one unit of the integer sums is worth. Write norms have no bound, so theirs is coarser: a total may reach 8e12.
UNITS = {"attention_bos": 2.0**-32, "attention_self": 2.0**-32, "write_norm": 2.0**-20}
NAMES = tuple(UNITS)
MEANS = ("attention_bos", "attention_self")  # reported per row of attention; the others as totals


class HeadStatistics:
    """Sums over queries 1 to T-1, per split and head of one layer."""

    def __init__(self, n_splits: int, n_heads: int):
        self.sums = np.zeros((len(NAMES), n_splits, n_heads), np.int64)
        self.rows = np.zeros(n_splits, np.int64)

    def add(self, pattern: Tensor, norms: Tensor, splits: np.ndarray, own: np.ndarray) -> None:
        """Add the windows ``own`` of a batch.

        Parameters
        ----------
        pattern, norms : Tensor [B, H, T, T]
            Attention and write norms, the latter zero at key 0 (BOS) and beyond the query.
        splits : int [B]
        own : bool [B]
        """
        totals = (
            pattern[:, :, 1:, 0].double().sum(-1),
            pattern.diagonal(dim1=-2, dim2=-1)[:, :, 1:].double().sum(-1),
            # Not in double precision: that would cost a copy of the largest array of the pass.
            norms.sum((-2, -1)),
        )
        for sums, total, unit in zip(self.sums, totals, UNITS.values(), strict=True):
            whole = np.rint(total.double().cpu().numpy()[own] / unit).astype(np.int64)
            np.add.at(sums, splits[own], whole)
        np.add.at(self.rows, splits[own], pattern.shape[2] - 1)


def statistics_table(layers: list[HeadStatistics]) -> Any:
    """Return the statistics of all layers as a data frame: layer, head, split, rows and integer sums."""
    import pandas as pd

    frames = []
    for index, statistics in enumerate(layers):
        split, head = np.indices(statistics.sums.shape[1:])
        columns = {"layer": index, "head": head.ravel(), "split": np.array(SPLITS)[split.ravel()]}
        sums = {name: statistics.sums[i].ravel() for i, name in enumerate(NAMES)}
        frames.append(pd.DataFrame({**columns, "rows": statistics.rows[split.ravel()], **sums}))
    return pd.concat(frames, ignore_index=True)


def merged_statistics(chunks: Sequence[str | Path]) -> Any:
    """Return the statistics of all windows from those of chunks.

    Returns
    -------
    data frame
        ``layer``, ``head``, ``split``, ``rows`` (rows of attention: queries 1 to T-1 of all windows),
        ``attention_bos``, ``attention_self`` (means over these rows), ``write_norm`` (sum of the write norms of all
        their pairs, BOS key left out).
    """
    import pandas as pd

    parts = pd.concat([read_table(Path(chunk) / "head_stats.parquet") for chunk in chunks])
    total = parts.groupby(["layer", "head", "split"], sort=True).sum().reset_index()
    total = total[total["rows"] > 0].reset_index(drop=True)
    for name, unit in UNITS.items():
        total[name] = total[name] * unit / (total["rows"] if name in MEANS else 1)
    return total
