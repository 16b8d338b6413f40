"""Heads on the members of a sequence (or any words): which member makes them promote which, and which they look for.

A member stands for itself by its residual after the first block, averaged over its occurrences in prompts. The OV
matrix says what a head promotes when it attends to a member, the QK matrix what it looks for from a member; both are
member by member for every head. Lan, Torr, Barez 2023 (arXiv 2311.04131, section 4.2) score copying and succession by
whether the member, or the next one, is among the five most promoted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.averages import head_columns, mean_rows
from mechatlas.circuits.effects import REPLICATES
from mechatlas.circuits.ov import ov_matrix, ov_ranks, token_residuals
from mechatlas.circuits.qk import token_matches
from mechatlas.models.transformer import Transformer
from mechatlas.stats.shares import share_interval


def mean_residuals(model: Transformer, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different tokens at some positions and their mean residual after the first block.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
        Prompts.
    positions : int64 Tensor [N, R]
        -1 where there is none.

    Returns
    -------
    tuple
        int64 ``[K]``, ascending, and ``[K, d]``.
    """
    here = positions >= 0
    own = tokens.take_along_dim(positions.clamp(min=0), dim=1)[here].to(model.device)
    x = token_residuals(model, tokens, positions.clamp(min=0))[here.to(model.device)]
    unique, inverse = own.unique(return_inverse=True)
    sums = torch.zeros(len(unique), x.shape[1], dtype=x.dtype, device=x.device)
    counts = inverse.bincount(minlength=len(unique))
    return unique, sums.index_add_(0, inverse, x) / counts[:, None]


def following(own: Tensor, members: Tensor, offset: int = 1, *, cyclic: bool = False) -> Tensor:
    """Return the member ``offset`` after each token of ``own [K]``, -1 where there is none."""
    out = []
    order = members.tolist()
    for token in own.tolist():
        place = order.index(token) + offset if token in order else -1
        inside = token in order and (cyclic or 0 <= place < len(order))
        out.append(order[place % len(order)] if inside else -1)
    return torch.tensor(out, dtype=torch.int64, device=own.device)


def ov_table(
    model: Transformer,
    x: Tensor,
    targets: Mapping[str, Tensor],
    *,
    best: int = 5,
    sign: int = 1,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Score what heads promote when they attend to tokens.

    Parameters
    ----------
    model : Transformer
    x : Tensor [K, d]
        Residuals of the attended tokens.
    targets : mapping of str to int64 Tensor [K]
        What is wanted for each: ``copy`` (the token itself), ``next``, ``ordinal`` ...; -1 where there is none.
    best : int
        How many most promoted tokens count as hits.
    sign : {1, -1}
        -1 scores what heads write against.

    Returns
    -------
    DataFrame
        One row per head and target: ``component``, ``layer``, ``head``, ``sign``, ``target``, ``hits``, ``of``
        (tokens that have the target), ``share`` with ``low`` and ``high`` (Wilson), ``median_rank`` in the whole
        vocabulary (0 is best), ``chance`` (``best`` of the vocabulary).
    """
    stacked = torch.stack(list(targets.values()), dim=1)
    known = (stacked >= 0).cpu().numpy()
    ranks = ov_ranks(model, x, stacked.clamp(min=0), sign=sign).cpu().numpy()
    tables = []
    for j, name in enumerate(targets):
        if not known[:, j].any():
            continue
        own = ranks[:, :, known[:, j], j].reshape(-1, known[:, j].sum())
        table = head_columns(*ranks.shape[:2]).assign(sign=sign, target=name)
        table["hits"], table["of"] = (own < best).sum(1), own.shape[1]
        table["share"] = table["hits"] / table["of"]
        ends = share_interval(table["hits"].to_numpy(), table["of"].to_numpy(), confidence)
        table["low"], table["high"] = ends
        table["median_rank"] = np.median(own, axis=1)
        tables.append(table.assign(chance=best / model.config.vocab_size))
    return pd.concat(tables, ignore_index=True)


def ov_member_table(
    model: Transformer,
    own: Tensor,
    x: Tensor,
    *,
    seed: int,
    step: int = 1,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Score what heads promote among the members alone.

    Parameters
    ----------
    model : Transformer
    own : int64 Tensor [K]
        The members in order.
    x : Tensor [K, d]
        Their residuals.
    step : int
        Distance from a member to the next one.

    Returns
    -------
    DataFrame
        One row per head: ``component``, ``layer``, ``head``; ``copy`` and ``next`` (share of members that promote
        themselves, or the next one, most among the K) with ``_hits``, ``_of``, ``_low`` and ``_high``; ``chance``
        (1/K); ``next_minus_copy`` (mean logit of the next member minus that of the member itself) with ``_low`` and
        ``_high`` (bootstrap over members).
    """
    matrix = ov_matrix(model, x, own)
    table = _argmax_table(matrix, {"copy": 0, "next": step}, confidence)
    inside = slice(max(0, -step), len(own) - max(0, step))
    gain = matrix.diagonal(step, 2, 3) - matrix.diagonal(0, 2, 3)[..., inside]
    rows = mean_rows(gain.flatten(0, 1), seed=seed, confidence=confidence, replicates=replicates)
    name = "next_minus_copy"
    table[[name, f"{name}_low", f"{name}_high"]] = rows[["mean", "low", "high"]]
    return table


def qk_member_table(
    model: Transformer,
    x: Tensor,
    others: Tensor,
    *,
    seed: int,
    step: int = 1,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Score which members heads look for from a member, without regard to position.

    Parameters
    ----------
    model : Transformer
    x : Tensor [K, d]
        Residuals of the members in order.
    others : Tensor [J, d]
        Residuals of other words of the prompts.
    step : int
        Distance from a member to the next one.

    Returns
    -------
    DataFrame
        One row per head: ``component``, ``layer``, ``head``; ``duplicate``, ``previous`` and ``next`` (share of
        members whose best match among the K is themselves, the member before or the one after) with ``_hits``,
        ``_of``, ``_low``, ``_high``; ``chance`` (1/K); ``similar``: probability that another member matches better
        than one of ``others`` (0.5 is chance), with ``_low`` and ``_high`` (bootstrap over members).
    """
    matrix = token_matches(model, x, x)
    table = _argmax_table(matrix, {"duplicate": 0, "previous": -step, "next": step}, confidence)
    apart = token_matches(model, x, others)
    wins = (matrix[..., None] > apart[..., None, :]).double()
    ties = (matrix[..., None] == apart[..., None, :]).double()
    wins = (wins + ties / 2).mean(-1)
    wins.diagonal(0, 2, 3).fill_(torch.nan)
    rows = mean_rows(
        wins.nanmean(-1).flatten(0, 1), seed=seed, confidence=confidence, replicates=replicates
    )
    table[["similar", "similar_low", "similar_high"]] = rows[["mean", "low", "high"]]
    return table


def matrix_rows(
    matrix: Tensor, rows: Sequence[str], columns: Sequence[str], value: str
) -> pd.DataFrame:
    """Return matrices ``[L, H, K, J]`` of all heads as one row per entry.

    Returns
    -------
    DataFrame
        ``component``, ``layer``, ``head``, ``attended`` (names of rows), ``promoted`` (of columns), ``value``.
    """
    layers, heads, height, width = matrix.shape
    table = head_columns(layers, heads)
    table = table.loc[table.index.repeat(height * width)].reset_index(drop=True)
    a, b = np.indices((height, width)).reshape(2, -1)
    table["attended"] = np.tile(np.array(rows, dtype=object)[a], layers * heads)
    table["promoted"] = np.tile(np.array(columns, dtype=object)[b], layers * heads)
    table[value] = matrix.double().cpu().numpy().ravel()
    return table


def _argmax_table(matrix: Tensor, offsets: Mapping[str, int], confidence: float) -> pd.DataFrame:
    """Count rows of ``[L, H, K, K]`` whose largest entry is ``offset`` columns from the diagonal."""
    layers, heads, count, _ = matrix.shape
    table = head_columns(layers, heads)
    place = matrix.argmax(-1) - torch.arange(count, device=matrix.device)
    for name, offset in offsets.items():
        hits = (place == offset).sum(-1).flatten().cpu().numpy()
        of = np.full(len(table), count - abs(offset))
        table[f"{name}_hits"], table[f"{name}_of"] = hits, of
        table[name] = hits / of
        table[f"{name}_low"], table[f"{name}_high"] = share_interval(hits, of, confidence)
    return table.assign(chance=1 / count)
