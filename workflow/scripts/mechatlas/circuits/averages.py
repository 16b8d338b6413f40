"""Means over prompts with bootstrap intervals, for many measurements of the same prompts at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.components import head_name
from mechatlas.circuits.effects import REPLICATES
from mechatlas.io import rng_for
from mechatlas.stats.bootstrap import document_weights, intervals
from mechatlas.stats.t_test import t_p_values

ROWS = 4096  # measurements whose resampled means are held at once


def mean_rows(
    values: np.ndarray | Tensor,
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average C measurements over N prompts.

    Parameters
    ----------
    values : float array or Tensor [C, N]
        NaN where a prompt lacks the measurement.
    seed : int
        Base seed of the resampling of prompts, which is the same for all measurements.
    confidence, replicates
        Of the intervals.

    Returns
    -------
    DataFrame [C rows]
        ``prompts``, ``mean``, ``low``, ``high``, ``p`` (that the mean is zero, two-sided, by
        a t-test over prompts in which what is within the rounding of numbers about one counts as zero); NaN without
        prompts.
    """
    values = values.double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    weights = _weights(values.shape[1], replicates, seed)
    parts = []
    for start in range(0, len(values), ROWS):
        part = values[start : start + ROWS]
        known = np.isfinite(part)
        # Without gaps every replicate has the same number of prompts.
        count = len(weights) if known.all() else known @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (np.where(known, part, 0.0) @ weights) / count
        low, high = intervals(means, confidence)
        row = {"prompts": known.sum(1), "mean": means[:, 0], "low": low, "high": high}
        parts.append(pd.DataFrame({**row, "p": t_p_values(part)}))
    return pd.concat(parts, ignore_index=True)


@lru_cache(maxsize=4)
def _weights(prompts: int, replicates: int, seed: int) -> np.ndarray:
    return document_weights(prompts, replicates, rng_for(seed, "means")).T


def pair_means(
    values: Mapping[tuple[str, str], Tensor],
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average measurements ``[N, L, H]`` of pairs of roles.

    Returns
    -------
    DataFrame
        One row per pair and head, in that order: ``component``, ``layer``, ``head``, ``query``, ``key`` and the
        columns of `mean_rows`.
    """
    tables = []
    # Sequences of one kind are as many for all its pairs.
    for count in dict.fromkeys(len(v) for v in values.values()):
        pairs = [pair for pair, v in values.items() if len(v) == count]
        stacked = torch.stack([values[pair].flatten(1).T for pair in pairs])
        heads = head_columns(*values[pairs[0]].shape[1:])
        table = heads.loc[np.tile(heads.index, len(pairs))].reset_index(drop=True)
        for i, name in enumerate(("query", "key")):
            column = np.array([pair[i] for pair in pairs], dtype=object)
            table[name] = column.repeat(len(heads))
        rows = mean_rows(
            stacked.flatten(0, 1), seed=seed, confidence=confidence, replicates=replicates
        )
        tables.append(pd.concat([table, rows], axis=1))
    return pd.concat(tables, ignore_index=True)


def head_columns(layers: int, heads: int) -> pd.DataFrame:
    """Return ``component``, ``layer`` and ``head`` of all heads, one row each."""
    layer, head = (x.ravel() for x in np.indices((layers, heads)))
    names = [head_name(a, b) for a, b in zip(layer, head, strict=True)]
    return pd.DataFrame({"component": names, "layer": layer, "head": head})
