"""Attention of some heads, for the last positions of a sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mechatlas.models.transformer import Transformer

SHORT = 64  # up to this many keys, plain matrix products are faster than a fused kernel


@dataclass(frozen=True)
class HeadWeights:
    """Weights of some heads of a layer.

    ``w_qkv`` holds the columns of their queries and of the ``shared`` key/value heads that they read; ``group`` says
    which of those each head reads; ``w_o`` holds their rows.
    """

    w_qkv: Tensor
    b_qkv: Tensor | None
    w_o: Tensor
    shared: Tensor
    group: Tensor

    @classmethod
    def of(cls, model: Transformer, layer: int, used: Tensor) -> HeadWeights:
        """Cut out the weights of heads ``used`` (int64)."""
        config, weights = model.config, model.weights.layers[layer]
        per_group = config.n_heads // config.n_kv_heads
        shared, group = (used // per_group).unique(return_inverse=True)
        blocks = torch.cat(
            [used, config.n_heads + shared, config.n_heads + config.n_kv_heads + shared]
        )
        within = torch.arange(config.d_head, device=used.device)
        columns = (blocks[:, None] * config.d_head + within).flatten()
        rows = (used[:, None] * config.d_head + within).flatten()
        bias = None if weights.b_qkv is None else weights.b_qkv[columns]
        return cls(weights.w_qkv[:, columns], bias, weights.w_o[rows], shared, group)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return z ``[R, S, H, dh]`` of the last S positions: causal attention over T keys.

    Parameters
    ----------
    q : Tensor [R, S, H, dh]
    k, v : Tensor [R, T, H or Hkv, dh]
    scale : float
        Factor of the scores.
    """
    rows, length, heads = q.shape[:3]
    keys, groups = k.shape[1], heads // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = causal_mask(length, keys, q)
    if keys > SHORT:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=groups > 1
        ).transpose(1, 2)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
    z = torch.bmm(scores.softmax(-1), v.flatten(0, 1))
    return z.unflatten(0, (rows, heads)).transpose(1, 2)


def causal_mask(length: int, keys: int, like: Tensor) -> Tensor:
    """Return what is added to the scores ``[S, T]`` of the last S of T positions: 0, or -inf for the future."""
    mask = torch.full((length, keys), -math.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(keys - length + 1)
