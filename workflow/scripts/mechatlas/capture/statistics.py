"""How much each head attends to BOS and to the query itself, summed exactly.

Sums are kept as integers (units of 2**-32), whose addition does not depend on the order, so that any division into
chunks gives the same means to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mechatlas.corpus.windows import SPLITS

if TYPE_CHECKING:
    from torch import Tensor

UNIT = 2.0**32
NAMES = ("attention_bos", "attention_self")


class HeadStatistics:
    """Sums of attention over queries 1 to T-1, per split and head of one layer."""

    def __init__(self, n_splits: int, n_heads: int):
        self.sums = np.zeros((len(NAMES), n_splits, n_heads), np.int64)
        self.rows = np.zeros(n_splits, np.int64)

    def add(self, pattern: Tensor, splits: np.ndarray, own: np.ndarray) -> None:
        """Add the windows ``own`` of a batch; ``pattern [B, H, T, T]``, ``splits [B]``."""
        columns = (pattern[:, :, 1:, 0], pattern.diagonal(dim1=-2, dim2=-1)[:, :, 1:])
        for place, column in enumerate(columns):
            total = column.double().sum(-1).cpu().numpy()
            np.add.at(self.sums[place], splits[own], np.rint(total[own] * UNIT).astype(np.int64))
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
