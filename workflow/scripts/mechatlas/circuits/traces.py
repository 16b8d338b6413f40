"""Forward passes that keep what the edge methods read, and what sources write in two of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.circuits.components import Graph
from mechatlas.circuits.engine import attend, first_difference
from mechatlas.models.transformer import Transformer


@dataclass(frozen=True)
class Trace:
    """Activations of N prompts of T tokens; None for layers that were not run.

    ``pre[l]`` (``pre[L]`` is the final residual), ``mid[l]`` and ``mlp[l]`` (what it writes) are ``[N, T, d]``;
    ``qkv[l]`` is ``[N, T, H + 2 Hkv, dh]`` (after the rotary embedding) and ``z[l] [N, T, H, dh]``.
    """

    pre: list[Tensor]
    mid: list[Tensor]
    qkv: list[Tensor]
    z: list[Tensor]
    mlp: list[Tensor]


def trace(
    model: Transformer,
    x: Tensor,
    *,
    start: int = 0,
    z: Tensor | None = None,
    mlp: Tensor | None = None,
) -> Trace:
    """Run the model from the ``resid_pre`` ``x [N, T, d]`` of a layer on.

    ``z`` and ``mlp`` replace what the heads and the MLP of that first layer compute.
    """
    rotary, run = model.rotary(x.shape[1]), Trace(*([None] * start for _ in range(5)))
    run.pre.append(x)
    for index in range(start, model.config.n_layers):
        layer, here = model.weights.layers[index], index == start
        qkv = None
        if not here or z is None:
            q, k, v = model.qkv(x, index, rotary)
            qkv = torch.cat([q, k, v], dim=2)
            heads = attend(*split(model, qkv), model.attention_scale(index))
        else:
            heads = z
        mid = x + F.linear(heads.flatten(2), layer.w_o.mT, layer.b_o)
        out = model.mlp(mid, index) if not here or mlp is None else mlp
        x = mid + out
        for kept, value in zip(
            (run.pre, run.mid, run.qkv, run.z, run.mlp), (x, mid, qkv, heads, out), strict=True
        ):
            kept.append(value)
    return run


def split(model: Transformer, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``[..., H + 2 Hkv, dh]`` into queries, keys and values."""
    config = model.config
    return qkv.split((config.n_heads, config.n_kv_heads, config.n_kv_heads), dim=-2)


def write_heads(z: Tensor, w_o: Tensor, out: Tensor | None = None) -> Tensor:
    """Return what each head writes, ``[H, rows, d]``, from ``z [rows, H, dh]`` and ``w_o [H, dh, d]``."""
    return torch.bmm(z.transpose(0, 1), w_o, out=out)


def source_differences(model: Transformer, to: Trace, base: Trace, first: int) -> Tensor:
    """Return ``a_u(to) - a_u(base)`` of every source from position ``first`` on, ``[S, N, T - first, d]``."""
    graph = Graph.of(model.config)
    embed = (to.pre[0] - base.pre[0])[:, first:]
    result = embed.new_empty(graph.n_sources, *embed.shape)
    result[0] = embed
    layers = result[1:].view(graph.n_layers, graph.n_heads + 1, -1, embed.shape[-1])
    for layer, rows in enumerate(layers):
        z = (to.z[layer] - base.z[layer])[:, first:].flatten(0, 1)
        write_heads(z, model.output_weights(layer), out=rows[:-1])
        torch.sub(*(run.mlp[layer][:, first:].flatten(0, 1) for run in (to, base)), out=rows[-1])
    return result


def unchanged(clean: Tensor, corrupted: Tensor, end: Tensor) -> int:
    """Return the first position that can differ between the two runs and is not after the end of any pair."""
    return min(first_difference(clean, corrupted), int(end.min()))


def per_sigma(model: Transformer, x: Tensor) -> Tensor:
    """Return what a norm multiplies residuals ``[..., d]`` by (after centring, in LayerNorm), ``[..., 1]``."""
    if model.config.architecture == "gpt2":
        square = x.var(-1, correction=0, keepdim=True)
    else:
        square = x.square().mean(-1, keepdim=True)
    return torch.rsqrt(square + model.config.norm_eps)
