"""What heads look for: how well the query at one place matches the key at another, before the softmax.

The score of a head is q·k / sqrt(d_head), bilinear in the two residuals (Elhage et al. 2021). Only differences between
the keys of one query matter, so scores are given relative to other keys: the other visible keys of the same prompt
(a score of 1 is a weight e times as large), and the keys at the same role of other prompts, which are equal in position
and frame but hold other words.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.averages import pair_means
from mechatlas.circuits.effects import REPLICATES
from mechatlas.io import rng_for
from mechatlas.models.transformer import Transformer
from mechatlas.stats.bootstrap import adjust_fdr


@torch.inference_mode()
def role_matches(
    model: Transformer,
    tokens: Tensor,
    roles: Mapping[str, Tensor],
    *,
    bos: bool,
    batch: int = 64,
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Measure how well queries at roles match keys at roles.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
    roles : mapping of str to int64 Tensor [N]
        Positions, -1 where absent.
    bos : bool
        Whether position 0 is BOS, which is left out of the other keys: many heads rest there.
    batch : int
        Prompts per forward pass.

    Returns
    -------
    dict
        (query role, key role), key not after query, to two tensors ``[N, L, H]``: the score minus the mean score of
        the other visible keys, and minus the mean score of the same query with the keys at that role of the other
        prompts. NaN where a role is absent, the key lies after the query, or there is nothing to compare with.
    """
    names = [name for name in roles if (torch.as_tensor(roles[name]) >= 0).any()]
    at = torch.stack([torch.as_tensor(roles[name]) for name in names], dim=1).to(model.device)
    score, rest, queries, keys = _scores_at(model, tokens, at, int(bos), batch)
    present = (at >= 0)[:, None, None, :]
    held = torch.where(present[..., None], keys, 0)
    count = present.sum(0, keepdim=True) - present.int()
    others = (held.sum(0, keepdim=True) - held) / torch.where(count > 0, count, torch.nan)[
        ..., None
    ]
    apart = torch.einsum("nlhqe,nlhke->nlhqk", queries, others)
    out = {}
    for i, query in enumerate(names):
        for j, key in enumerate(names):
            valid = (at[:, j] >= 0) & (at[:, i] >= at[:, j])
            if not valid.any():
                continue
            own = score[..., i, j].masked_fill(~valid[:, None, None], torch.nan)
            out[query, key] = (own - rest[..., i, j], own - apart[..., i, j])
    return out


def match_table(
    matches: Mapping[tuple[str, str], tuple[Tensor, Tensor]],
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average `role_matches` over prompts.

    Returns
    -------
    DataFrame
        One row per head and pair of roles: ``component``, ``layer``, ``head``, ``query``, ``key``, ``prompts``;
        ``score`` (above the other visible keys) with ``score_low``, ``score_high``, ``score_p_fdr``; ``content``
        (above the keys at that role of other prompts) likewise. 0 is chance; p-values are two-sided and adjusted over
        all rows (Benjamini-Hochberg).
    """
    options = {"seed": seed, "confidence": confidence, "replicates": replicates}
    table = None
    for i, name in enumerate(("score", "content")):
        rows = pair_means({pair: both[i] for pair, both in matches.items()}, **options)
        rows["p"] = adjust_fdr(rows["p"].to_numpy())
        if table is None:
            table = rows[["component", "layer", "head", "query", "key", "prompts"]].copy()
        columns = [name, f"{name}_low", f"{name}_high", f"{name}_p_fdr"]
        table[columns] = rows[["mean", "low", "high", "p"]]
    return table


@torch.inference_mode()
def position_attention(
    model: Transformer,
    *,
    seed: int,
    bos: int | None,
    offsets: int = 4,
    length: int = 64,
    count: int = 32,
) -> Tensor:
    """Return attention to earlier positions from position information alone, ``[L, H, offsets]``.

    Random tokens are averaged away: every layer's queries and keys are computed from its mean residual at each
    position over ``count`` random sequences. Entry k is the mean weight that positions give to the one k before them,
    unless that is BOS.

    Parameters
    ----------
    model : Transformer
    seed : int
        Base seed of the sequences.
    bos : int or None
        Put first.
    offsets : int
        0 is the position itself, 1 the previous token.
    length, count : int
        Tokens of a sequence (at most what the model's context allows) and sequences.
    """
    lead = bos is not None
    length = min(length, model.config.n_ctx - lead)
    rng = rng_for(seed, "position attention")
    choices = np.array([t for t in range(model.config.vocab_size) if t != bos])
    drawn = rng.choice(choices, (count, length))
    first = np.full((count, int(lead)), bos if lead else 0)
    tokens = torch.from_numpy(np.concatenate([first, drawn], axis=1)).to(model.device)
    means: list[Tensor] = []
    model.forward(
        tokens, {"resid_pre": lambda x, layer: means.append(x.mean(0, keepdim=True))}, logits=False
    )
    rotary, rows = model.rotary(tokens.shape[1]), []
    for layer, x in enumerate(means):
        q, k, _ = model.qkv(x, layer, rotary)
        scores = torch.einsum("qhe,khe->hqk", q[0], _per_head(model, k)[0])
        scores = scores * model.attention_scale(layer)
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        rows.append(
            torch.stack(
                [
                    pattern.diagonal(-k, dim1=1, dim2=2)[:, int(lead) :].mean(1)
                    for k in range(offsets)
                ],
                dim=1,
            )
        )
    return torch.stack(rows)


@torch.inference_mode()
def token_matches(model: Transformer, queries: Tensor, keys: Tensor) -> Tensor:
    """Return how well tokens match tokens, position left out, ``[L, H, K, J]``.

    Parameters
    ----------
    model : Transformer
    queries : Tensor [K, d]
    keys : Tensor [J, d]
        Residuals after the first block (`mechatlas.circuits.ov.token_residuals`); they stand for what later layers
        read, so the first layer's scores mean little. Rotary embeddings are those of distance 0.
    """
    out = []
    for layer in range(model.config.n_layers):
        q = model.qkv(queries[None], layer, None)[0][0]
        k = _per_head(model, model.qkv(keys[None], layer, None)[1])[0]
        out.append(torch.einsum("qhe,khe->hqk", q, k) * model.attention_scale(layer))
    return torch.stack(out)


def _scores_at(
    model: Transformer, tokens: Tensor, at: Tensor, first: int, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores ``[N, L, H, R, R]``, mean scores of other keys, scaled queries and keys ``[N, L, H, R, dh]``."""
    parts = []
    for rows in torch.arange(len(tokens)).split(batch):
        where, seen = at[rows.to(at.device)].clamp(min=0), {"q": [], "k": []}
        hooks = {
            point: lambda value, layer, seen=seen, point=point: seen[point].append(value)
            for point in ("q", "k")
        }
        model.forward(tokens[rows].to(model.device), hooks, logits=False)
        parts.append(
            [
                _layer_scores(model, layer, q, _per_head(model, k), where, first)
                for layer, (q, k) in enumerate(zip(seen["q"], seen["k"], strict=True))
            ]
        )
    joined = (
        [torch.stack([layer[i] for layer in part], dim=1) for part in parts] for i in range(4)
    )
    return tuple(torch.cat(values) for values in joined)


def _layer_scores(
    model: Transformer, layer: int, q: Tensor, k: Tensor, where: Tensor, first: int
) -> tuple[Tensor, ...]:
    index = where[..., None, None]
    queries = (q.take_along_dim(index, dim=1) * model.attention_scale(layer)).transpose(1, 2)
    scores = torch.einsum("bhre,bthe->bhrt", queries, k)
    keys = k.take_along_dim(index, dim=1).transpose(1, 2)
    own = scores.take_along_dim(where[:, None, None, :], dim=3)
    t = torch.arange(k.shape[1], device=k.device)
    visible = ((t >= first) & (t <= where[..., None]))[:, None]
    total = torch.where(visible, scores, 0).sum(-1, keepdim=True)
    # A key that is BOS itself is not among the other keys.
    inside = (where >= first)[:, None, None, :]
    count = visible.sum(-1, keepdim=True) - inside.int()
    rest = (total - torch.where(inside, own, 0)) / torch.where(count > 0, count, torch.nan)
    return own, rest, queries, keys


def _per_head(model: Transformer, k: Tensor) -> Tensor:
    """Repeat shared keys ``[B, T, Hkv, dh]`` for every head that reads them."""
    return k.repeat_interleave(model.config.n_heads // model.config.n_kv_heads, dim=2)
