"""The exact effect of every single edge: what changes when one edge alone carries the corrupted activation.

Edge attribution estimates this number; here it is computed. A variant of the clean run exists for each edge u -> v,
with the input x_v + a'_u - a_u at v. It equals the clean run up to v, so each variant starts at its destination, and
all variants of a layer run together as one batch. What can be saved without approximation is saved:

- queries, keys and values of x + a'_u - a_u cost one projection per source, for all heads of the layer;
- a variant of a query, key or value changes z of its head only, d_head wide; the next MLP's first matrix W reads that
  through W_O W, made once per layer;
- positions before the first difference of the pair cannot change: their keys and values are those of the clean run;
- the last layer is needed at the position that is read only, and attends there without making keys and values.

What remains is 24 d^2 operations per variant, position and later layer: for the 32,491 edges of GPT-2 small and a pair
whose last 13 tokens can change, 17.4 TFLOP, against 120 for a full forward pass per edge.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.backend import fast_matmul, require_precision
from mechatlas.circuits.components import Graph
from mechatlas.circuits.edges import EdgeScores, Moments
from mechatlas.circuits.engine import attend, first_difference
from mechatlas.circuits.metrics import Metric
from mechatlas.circuits.traces import per_sigma, source_differences, split, trace
from mechatlas.io import progress
from mechatlas.models.transformer import ACTIVATIONS, Transformer

ROWS = 1500  # variants x positions per batch: activations stay in cache, products are large


def exact_edge_effects(
    model: Transformer,
    clean: Tensor,
    corrupted: Tensor,
    end: Tensor,
    metric: Metric,
    *,
    force: bool = False,
) -> EdgeScores:
    """Return the exact effect of every edge, averaged over pairs.

    Parameters
    ----------
    model : Transformer
    clean, corrupted : int64 Tensor [N, T]
    end : int64 Tensor [N]
        Position that is read.
    metric : Metric
    force : bool
        Allow bfloat16, whose rounding hides most effects.

    Raises
    ------
    UserError
        If the model's number format is too coarse and not forced.
    """
    graph = Graph.of(model.config)
    moments = Moments(graph)
    effects = each_pair(model, clean, corrupted, end, metric, force=force)
    for one in progress(effects, total=len(clean), desc="exact edges", unit="pair"):
        moments.add(one[None])
    return moments.scores()


def each_pair(
    model: Transformer,
    clean: Tensor,
    corrupted: Tensor,
    end: Tensor,
    metric: Metric,
    *,
    layers: range | None = None,
    force: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the effects ``[S, D]`` of one pair after the other, so that a long sweep can store what it has.

    Parameters and errors are those of `exact_edge_effects`; `EdgeScores.of` summarises the effects. With ``layers``
    there are only the destinations in these layers (the logits are in the last one): of all layers, joined, the
    effects are the same to the last digit.
    """
    layers = range(model.config.n_layers) if layers is None else layers
    require_precision(model.dtype, "the exact effect of single edges", force=force)
    for n in range(len(clean)):
        pair = slice(n, n + 1)
        with fast_matmul(), torch.inference_mode():
            variants = _Variants(model, clean[pair], corrupted[pair], int(end[n]))
            effects = variants.effects(metric.select(pair), layers).cpu().numpy()
        yield effects


class _Variants:
    """All single-edge variants of the clean run of one pair."""

    def __init__(self, model: Transformer, clean: Tensor, corrupted: Tensor, end: int):
        clean, corrupted = (x[:, : end + 1].to(model.device) for x in (clean, corrupted))
        self.model, self.graph = model, Graph.of(model.config)
        self.first = first_difference(clean, corrupted)
        self.run, other = (trace(model, model.embed(x)) for x in (clean, corrupted))
        self.delta = source_differences(model, other, self.run, self.first)[:, 0]  # [S, T, d]
        rotary = model.rotary(end + 1)
        self.rotary = None if rotary is None else tuple(x[self.first :] for x in rotary)

    def effects(self, metric: Metric, layers: range) -> Tensor:
        """Return the change of the metric for every edge into the destinations of some layers, ``[S, D]``."""
        graph = self.graph
        result = self.delta.new_zeros(graph.n_sources, graph.n_destinations)
        base = self._read(metric, self.run.pre[-1][0, -1:])
        for layer in layers:
            first, sources = layer * graph.readers, 1 + layer * (graph.n_heads + 1)
            finals = torch.cat(list(self._heads_changed(layer)))
            values = self._read(metric, finals).view(-1, sources)
            result[:sources, first : first + len(values)] = values.T
            sources += graph.n_heads
            finals = torch.cat(
                [self._mlp_changed(part, layer) for part in self._parts(self.delta[:sources])]
            )
            result[:sources, first + graph.readers - 1] = self._read(metric, finals)
        last = layers.stop == graph.n_layers
        if last:
            result[:, -1] = self._read(metric, self.run.pre[-1][0, -1] + self.delta[:, -1])
        columns = slice(layers.start * graph.readers, layers.stop * graph.readers + last)
        exists = torch.from_numpy(graph.edges[:, columns]).to(result.device)
        return torch.where(exists, result[:, columns] - base, 0)

    def _read(self, metric: Metric, x: Tensor) -> Tensor:
        """Return the metric ``[V]`` of final residuals ``[V, d]``."""
        weights = self.model.weights
        return metric(self.model.norm(x, weights.final_norm, weights.final_norm_bias)[:, None])[
            :, 0
        ]

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(max(1, ROWS // x.shape[1]))

    def _heads_changed(self, layer: int) -> Iterator[Tensor]:
        """Yield final residuals ``[V, d]`` of the variants into queries, keys, values (reader, then source)."""
        mid = self.run.mid[layer][0, self.first :]
        if layer == self.graph.n_layers - 1:
            mid = mid[-1:]
        w_o = self.model.output_weights(layer)
        mlp = _MlpAfterHeads(self.model, layer, mid, w_o)
        for change in self._z_changes(layer):  # [readers, sources, T, heads x dh]
            readers, sources, length = change.shape[:3]
            step = max(1, ROWS // (sources * length))
            for first in range(0, readers, step):
                z = change[first : first + step]
                for part in z.split(max(1, ROWS // (len(z) * length)), dim=1):
                    yield self._after_layer(mlp(part, slice(first, first + step), readers), layer)

    def _z_changes(self, layer: int) -> Iterator[Tensor]:
        """Yield by how much z changes for new queries, keys, values: ``[readers, sources, T, heads x dh]``."""
        first, heads, shared = self.first, self.graph.n_heads, self.graph.n_kv_heads
        sources, scale = 1 + layer * (heads + 1), self.model.attention_scale(layer)
        x = self.run.pre[layer][0, first:] + self.delta[:sources]
        new = [y.permute(2, 0, 1, 3) for y in self.model.qkv(x, layer, self.rotary)]
        q, k, v = (y.transpose(0, 1) for y in split(self.model, self.run.qkv[layer][0]))
        k, v = (y.repeat_interleave(heads // shared, dim=0) for y in (k, v))  # [H, T, dh]
        q, z = q[:, first:], self.run.z[layer][0, first:].transpose(0, 1)
        if layer == self.graph.n_layers - 1:
            q, z, new[0] = q[:, -1:], z[:, -1:], new[0][:, :, -1:]
        mask = torch.full((q.shape[1], k.shape[1]), -torch.inf, dtype=q.dtype, device=q.device)
        mask = mask.triu_(k.shape[1] - q.shape[1] + 1)
        scores = torch.einsum("hstd,hkd->hstk", new[0], k) * scale + mask
        yield torch.einsum("hstk,hkd->hstd", scores.softmax(-1), v) - z[:, None]
        base = torch.einsum("htd,hkd->htk", q, k) * scale + mask
        by_group = [y.repeat_interleave(heads // shared, dim=0) for y in new[1:]]
        scores = base[:, None].repeat(1, sources, 1, 1)
        scores[..., first:] = torch.einsum("htd,hskd->hstk", q, by_group[0]) * scale
        scores[..., first:] += mask[:, first:]
        change = torch.einsum("hstk,hkd->hstd", scores.softmax(-1), v) - z[:, None]
        yield self._joined(change)
        moved = by_group[1] - v[:, None, first:]
        yield self._joined(torch.einsum("htk,hskd->hstd", base.softmax(-1)[..., first:], moved))

    def _joined(self, change: Tensor) -> Tensor:
        """Lay the z of all heads that share a key or value side by side."""
        change = change.unflatten(0, (self.graph.n_kv_heads, -1))
        return change.permute(0, 2, 3, 1, 4).flatten(3)

    def _mlp_changed(self, delta: Tensor, layer: int) -> Tensor:
        """Return the final residuals ``[V, d]`` of variants whose MLP input changes by ``delta [V, T, d]``."""
        mid, out = (x[layer][0, self.first :] for x in (self.run.mid, self.run.mlp))
        if layer == self.graph.n_layers - 1:
            delta, mid, out = delta[:, -1:], mid[-1:], out[-1:]
        change = self.model.mlp(mid + delta, layer).sub_(out)
        return self._after_layer(change.add_(self.run.pre[layer + 1][0, -mid.shape[0] :]), layer)

    def _after_layer(self, x: Tensor, layer: int) -> Tensor:
        for index in range(layer + 1, self.graph.n_layers):
            x = self._block(x, index)
        return x[:, -1]

    def _block(self, x: Tensor, index: int) -> Tensor:
        """Run a layer on ``x [V, T, d]``, before which come the clean positions; the last one at the end only."""
        model, layer = self.model, self.model.weights.layers[index]
        if index < self.graph.n_layers - 1:
            z = self._attention(x, index)
        else:
            z = (self._attention(x, index) if self.rotary else self._short_attention(x, index))[
                :, -1:
            ]
            x = x[:, -1:]
        x = x + z.flatten(2) @ layer.w_o
        if layer.b_o is not None:
            x += layer.b_o
        return x.add_(model.mlp(x, index))

    def _attention(self, x: Tensor, index: int) -> Tensor:
        q, k, v = self.model.qkv(x, index, self.rotary)
        _, k0, v0 = split(self.model, self.run.qkv[index][:, : self.first])
        k, v = _behind(k0, k), _behind(v0, v)
        return attend(q, k, v, self.model.attention_scale(index))

    def _short_attention(self, x: Tensor, index: int) -> Tensor:
        """Return z ``[V, 1, H, dh]`` of the end: (W_K'q) . x and W_V (sum p x) need no keys and values of x."""
        model, layer = self.model, self.model.weights.layers[index]
        x = model.norm(x, layer.norm1, layer.norm1_bias)
        w_q, w_k, w_v = (w.permute(1, 0, 2) for w in split(model, self._by_head(layer.w_qkv)))
        b_q, b_k, b_v = split(model, self._by_head(layer.b_qkv))
        _, k, v = (y.transpose(0, 1) for y in split(model, self.run.qkv[index][0, : self.first]))
        q = (x[:, -1] @ w_q + b_q[:, None]) * model.attention_scale(index)  # [H, V, dh]
        new = torch.bmm(x, (q @ w_k.mT).permute(1, 2, 0)).permute(2, 0, 1)  # [H, V, T]
        new += q @ b_k[..., None]
        old, new = (
            torch.cat([q @ k.mT, new], dim=-1).softmax(-1).split((self.first, x.shape[1]), -1)
        )
        pooled = torch.bmm(new.permute(1, 0, 2), x).transpose(0, 1)
        z = pooled @ w_v + new.sum(-1, keepdim=True) * b_v[:, None] + old @ v
        return z.transpose(0, 1)[:, None]

    def _by_head(self, weight: Tensor) -> Tensor:
        return weight.unflatten(-1, (-1, self.model.config.d_head))


def _behind(before: Tensor, new: Tensor) -> Tensor:
    """Join ``[1, F, H, dh]`` and ``[V, T, H, dh]`` along positions, laid out as attention multiplies them."""
    first = before.shape[1]
    joined = new.new_empty(len(new), new.shape[2], first + new.shape[1], new.shape[3])
    joined[:, :, :first], joined[:, :, first:] = before.transpose(1, 2), new.transpose(1, 2)
    return joined.transpose(1, 2)


class _MlpAfterHeads:
    """An MLP behind a change of single heads' z: its first matrix W acts on z W_O W, d_head wide instead of d_model.

    With the norm's scale and centring folded into W, W'(norm(x)) = (x W) / sigma + bias is linear in x but for sigma.
    """

    def __init__(self, model: Transformer, index: int, mid: Tensor, w_o: Tensor):
        self.model, self.layer, self.mid, self.w_o = model, model.weights.layers[index], mid, w_o
        layer = self.layer
        self.parts = [
            self._folded(w, b)
            for w, b in ((layer.w_gate, layer.b_gate), (layer.w_up, layer.b_up))
            if w is not None
        ]

    def __call__(self, z: Tensor, readers: slice, of: int) -> Tensor:
        """Return ``resid_post [V, T, d]`` for changes ``z [r, sources, T, e]`` of some of ``of`` readers."""
        rows, layer = z.flatten(1, 2), self.layer
        x = self._through(rows, self.w_o, readers, of).add_(self.mid)
        scale = per_sigma(self.model, x)
        hidden = []
        for weight, base, bias in self.parts:
            pre = self._through(rows, weight, readers, of).add_(base).mul_(scale)
            hidden.append(pre if bias is None else pre.add_(bias))
        hidden[0] = ACTIVATIONS[self.model.config.activation](hidden[0])
        post = hidden[0] if len(hidden) == 1 else hidden[0].mul_(hidden[1])
        x.add_(post @ layer.w_down)
        return x if layer.b_down is None else x.add_(layer.b_down)

    def _folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return W_O W per head, what the clean residual gives, and the bias, for a first matrix W."""
        layer = self.layer
        if layer.norm2_bias is not None:
            bias = layer.norm2_bias @ weight + (0 if bias is None else bias)
        weight = layer.norm2[:, None] * weight
        if self.model.config.architecture == "gpt2":
            weight -= weight.mean(0)
        return self.w_o @ weight, self.mid @ weight, bias

    def _through(self, z: Tensor, weight: Tensor, readers: slice, of: int) -> Tensor:
        """Multiply ``z [r, rows, e]`` by its readers' rows of ``weight [H, dh, out]``, ``[V, T, out]``."""
        weight = weight.reshape(of, -1, weight.shape[-1])[readers]
        return torch.bmm(z, weight).view(-1, len(self.mid), weight.shape[-1])
