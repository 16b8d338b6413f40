"""Which heads are explained, where not all of them are."""

from __future__ import annotations

import logging

import pandas as pd

from mechatlas.explain.records import Head
from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")


def heads_to_explain(statistics: pd.DataFrame, max_heads: int) -> list[Head]:
    """Return the heads that write most, at most ``max_heads`` of them, in the order of layers and heads.

    Parameters
    ----------
    statistics : data frame
        head_stats.parquet: layer, head, split, write_norm (sum over the pairs of the split, BOS key left out).
    max_heads : int

    Notes
    -----
    What counts is the sum over train windows; the first of equal heads goes before. What is left out is logged.

    Raises
    ------
    UserError
        If the statistics come from a version that did not measure write norms.
    """
    train = statistics[statistics["split"] == "train"]
    if len(train) > max_heads and "write_norm" not in train:
        raise UserError(
            "head_stats.parquet has no column write_norm, by which explain.max_heads chooses; delete it and rerun"
        )
    heads = list(zip(train["layer"].tolist(), train["head"].tolist(), strict=True))
    if len(heads) <= max_heads:
        return sorted(heads)
    norms = dict(zip(heads, train["write_norm"].tolist(), strict=True))
    chosen = sorted(heads, key=lambda head: (-norms[head], head))[:max_heads]
    share = sum(norms[head] for head in chosen) / max(sum(norms.values()), 1e-300)
    logger.info(
        "explain.max_heads: %d of %d heads are explained, those with the largest total write norm over train "
        "windows (%.1f %% of it)",
        *(max_heads, len(heads), 100 * share),
    )
    return sorted(chosen)
