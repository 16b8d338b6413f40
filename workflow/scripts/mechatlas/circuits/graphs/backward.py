"""Rows of the graph: an explicit linear backward pass through the local replacement model.

With patterns and norm scales frozen, the gradient g of a target with respect to the residual stream obeys, from the
top layer down (all in row vectors, one gradient for each position)::

    edge of what the MLP or embedding writes at p    g_p . w
    attention   g_k += scale_k C (w1 * sum_h sum_q pattern_h[q, k] g_q W_O^h' W_V^h')     C: centring, LayerNorm only
    skip        g_p += C (...) of g_p W_skip, where the transcoder has one

so no copy of the model's graph is made. All targets at one position share a pass: it grows by the targets that read a
layer as it comes down, and needs only the positions up to theirs. Sources are contracted with the gradient where they
write; memory is one gradient for each target of a chunk and the decoder rows of active features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechatlas.circuits.graphs.run import LocalRun


@dataclass(frozen=True)
class Columns:
    """Where the sources of a run stand among N columns, with P positions, L layers, b leading positions.

    Features come first, sorted by position, layer, index, so that those of one position that write to a layer are
    neighbours; ``order[i]`` is the place of column i in `LocalRun.active`, and ``first [P, L + 1]`` where the features
    of a position and layer begin. Then errors [L, P], tokens [P], positions [P] (if the model has them), BOS outputs
    [L, b], attention biases [L], decoder biases [L], reader bias [1].
    """

    order: Tensor
    first: Tensor
    errors: int
    tokens: int
    positions: int
    bos_outputs: int
    attention_biases: int
    decoder_biases: int
    reader_bias: int

    @property
    def count(self) -> int:
        """Number of columns N."""
        return self.reader_bias + 1


def columns_of(run: LocalRun) -> Columns:
    """Return the columns of a run."""
    active, layers, length = run.active, run.model.config.n_layers, run.length
    order = torch.argsort(active.position, stable=True)
    place = active.position * layers + active.layer
    counts = torch.bincount(place, minlength=length * layers).view(length, layers)
    ends = counts.flatten().cumsum(0).view(length, layers)
    # Read as Python numbers only, for which a GPU would be waited for each time.
    first = torch.cat([(ends - counts)[:, :1], ends], 1).cpu()
    sizes = [
        len(active),
        layers * length,
        length,
        0 if run.model.weights.positions is None else length,
        layers * run.bos,
        layers,
        layers,
    ]
    starts = torch.tensor(sizes).cumsum(0).tolist()
    return Columns(order, first, *starts)


@dataclass(frozen=True)
class Targets:
    """Targets at one position that read the residual: ``vector [R, d]``, gradients at what a layer's MLP norm reads.

    Attributes
    ----------
    layer : int64 Tensor [R]
        The layer that reads, descending; L for targets at the end.
    constant : Tensor [R]
        What the reader adds by itself: encoder bias, bias of its norm.
    """

    layer: Tensor
    vector: Tensor
    constant: Tensor

    def __len__(self) -> int:
        return len(self.layer)


class Backward:
    """The frozen linear map of a run, ready to be run backward."""

    def __init__(self, run: LocalRun):
        self.run, self.columns = run, columns_of(run)
        config = run.model.config
        self.centred = config.architecture == "gpt2"
        self.w_o, self.w_v, self.spread, self.attention_constant = [], [], [], []
        for layer in range(config.n_layers):
            self._prepare_attention(layer)
        self.writes = [self._writes(layer) for layer in range(config.n_layers)]
        weights = run.model.weights
        self.decoder_constant = torch.stack(
            [self._decoder_constant(layer) for layer in range(config.n_layers)]
        )
        self.embedding = weights.embedding[run.tokens]

    def feature_targets(self, index: Tensor) -> Targets:
        """Return active features (places in `LocalRun.active`) of one position as targets, from the top layer down."""
        run, clt = self.run, self.run.clt
        layer, feature = run.active.layer[index], run.active.feature[index]
        position = run.active.position[index[:1]]
        vector = run.final.new_empty(len(index), run.model.config.d_model)
        constant = run.final.new_empty(len(index))
        for one in layer.unique().tolist():
            here = layer == one
            rows = clt.encoder[one][feature[here]]
            vector[here], bias = self._reading(rows, one, position)
            constant[here] = clt.encoder_bias[one][feature[here]] + bias
        return Targets(layer, vector, constant)

    def final_targets(self, vectors: Tensor) -> Targets:
        """Return directions ``[R, d]`` of the normalised final residual at the last position as targets."""
        run, weights = self.run, self.run.model.weights
        pulled = self._pull(vectors, weights.final_norm, run.final_scale[-1:])
        bias = weights.final_norm_bias
        constant = vectors.new_zeros(len(vectors)) if bias is None else vectors @ bias
        layer = torch.full((len(vectors),), run.model.config.n_layers)
        return Targets(layer, pulled, constant)

    @torch.inference_mode()
    def rows(self, targets: Targets, position: int) -> Tensor:
        """Return the effect of every source on targets at a position, ``[R, N]`` (columns as in `Columns`).

        The targets' layers must descend.
        """
        run, columns, span = self.run, self.columns, position + 1
        rows = run.final.new_zeros(len(targets), columns.count)
        g = run.final.new_zeros(len(targets), span, run.final.shape[1])
        started, layers = 0, targets.layer.tolist()
        for layer in range(run.model.config.n_layers - 1, -1, -1):
            started = self._start(targets, layers, layer + 1, started, g, position)
            here = g[:started]
            if started:
                self._contract(here, layer, rows[:started])
                self._skip_back(here, layer)
            started = self._start(targets, layers, layer, started, g, position)
            if started:
                here = g[:started]
                rows[:started, columns.attention_biases + layer] = (
                    here.sum(1) @ self.attention_constant[layer]
                )
                self._attention_back(here, layer)
        self._contract_embedding(g, rows)
        rows[:, columns.reader_bias] = targets.constant
        return rows

    def _start(
        self,
        targets: Targets,
        layers: list[int],
        layer: int,
        started: int,
        g: Tensor,
        position: int,
    ) -> int:
        """Add the vectors of targets that read at a layer (L: at the end) to the gradients; return how many run now."""
        stop = started
        while stop < len(layers) and layers[stop] >= layer:
            stop += 1
        if stop > started:
            g[started:stop, position] += targets.vector[started:stop]
        return stop

    def _contract(self, g: Tensor, layer: int, rows: Tensor) -> None:
        """Multiply gradients ``[R, span, d]`` with what is written as the MLP output of a layer."""
        run, columns, span = self.run, self.columns, g.shape[1]
        errors = columns.errors + layer * run.length
        for position in range(run.bos, span):
            at = g[:, position]
            written, first, last = self.writes[layer][position]
            if last > first:
                torch.addmm(rows[:, first:last], at, written.mT, out=rows[:, first:last])
        if span > run.bos:
            rows[:, errors + run.bos : errors + span] = torch.einsum(
                "rpd,pd->rp", g[:, run.bos :], run.error[layer][run.bos : span]
            )
            rows[:, columns.decoder_biases + layer] = (
                g[:, run.bos :].sum(1) @ self.decoder_constant[layer]
            )
        bos = min(run.bos, span)
        first = columns.bos_outputs + layer * run.bos
        rows[:, first : first + bos] = torch.einsum(
            "rpd,pd->rp", g[:, :bos], run.mlp_out[layer][:bos]
        )

    def _contract_embedding(self, g: Tensor, rows: Tensor) -> None:
        columns, span = self.columns, g.shape[1]
        parts = {columns.tokens: self.embedding}
        positions = self.run.model.weights.positions
        if positions is not None:
            parts[columns.positions] = positions
        for first, written in parts.items():
            rows[:, first : first + span] = torch.einsum("rpd,pd->rp", g, written[:span])

    def _attention_back(self, g: Tensor, layer: int) -> None:
        """Add what flows through the attention of a layer to gradients ``[R, span, d]``, in place."""
        config, (count, span, d) = self.run.model.config, g.shape
        heads, shared, dh = config.n_heads, config.n_kv_heads, config.d_head
        # [R span, H dh] -> [Hkv, group span, R dh]: one product with the pattern for all heads that share values.
        z = (g.view(-1, d) @ self.w_o[layer]).view(count, span, shared, heads // shared, dh)
        z = z.permute(2, 3, 1, 0, 4).reshape(shared, heads // shared * span, count * dh)
        spread = self.spread[layer][:, :span, :, :span].flatten(2)
        v = torch.bmm(spread, z).view(shared, span, count, dh).permute(2, 1, 0, 3)
        g.view(-1, d).addmm_(v.reshape(count * span, -1), self.w_v[layer])

    def _skip_back(self, g: Tensor, layer: int) -> None:
        """Add what flows through the skip connection of a layer, behind the leading positions, in place."""
        run = self.run
        if run.clt.skip is None or g.shape[1] <= run.bos:
            return
        back = g[:, run.bos :] @ run.clt.skip[layer]
        scale = run.mlp_scale[layer][run.bos : g.shape[1]]
        g[:, run.bos :] += self._reading(back, layer, slice(run.bos, g.shape[1]), scale)[0]

    def _reading(
        self, vectors: Tensor, layer: int, position: Tensor | slice, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """Turn gradients at what features of a layer read into gradients at the residual before its MLP.

        The second value is what the norm's bias contributes.
        """
        if self.run.clt.reads == "resid_mid":
            return vectors, 0.0
        weights = self.run.model.weights.layers[layer]
        scale = self.run.mlp_scale[layer][position] if scale is None else scale
        bias = 0.0 if weights.norm2_bias is None else vectors @ weights.norm2_bias
        return self._pull(vectors, weights.norm2, scale), bias

    def _pull(self, g: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """Take gradients ``[..., d]`` back through a norm with frozen scale ``[..., 1]``."""
        g = g * weight * scale
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def _prepare_attention(self, layer: int) -> None:
        """Lay out a layer's attention: the norm's weight and centring in W_V, its scale in the pattern."""
        config, weights = self.run.model.config, self.run.model.weights.layers[layer]
        shared, group = config.n_kv_heads, config.n_heads // config.n_kv_heads
        columns = (config.n_heads + shared) * config.d_head
        w_v = weights.w_qkv[:, columns:]
        back = self._pull(w_v.mT, weights.norm1, torch.ones((), dtype=w_v.dtype))
        self.w_v.append(back.contiguous())
        self.w_o.append(weights.w_o.mT)
        # [H, q, k] -> [Hkv, k, group, q], times the norm's scale at the key.
        pattern = self.run.pattern[layer].unflatten(0, (shared, group)).permute(0, 3, 1, 2)
        self.spread.append(pattern * self.run.attention_scale[layer][None, :, :, None])
        value = w_v.new_zeros(shared * config.d_head)
        if weights.norm1_bias is not None:
            value = value + weights.norm1_bias @ w_v
        if weights.b_qkv is not None:
            value = value + weights.b_qkv[columns:]
        value = value.view(shared, 1, -1).expand(-1, group, -1).reshape(-1)
        constant = value @ weights.w_o
        self.attention_constant.append(constant if weights.b_o is None else constant + weights.b_o)

    def _decoder_constant(self, layer: int) -> Tensor:
        """Return what is written wherever features are: the decoder's bias, and what a skip makes of a norm's bias."""
        clt, bias = self.run.clt, self.run.model.weights.layers[layer].norm2_bias
        constant = clt.decoder_bias[layer]
        if clt.skip is None or clt.reads == "resid_mid" or bias is None:
            return constant
        return constant + clt.skip[layer] @ bias

    def _writes(self, target: int) -> list[tuple[Tensor, int, int]]:
        """Return for each position what its active features write to a layer, ``[n, d]``, with their columns."""
        run, columns, active = self.run, self.columns, self.run.active
        sources = run.clt.sources(target)
        layer = active.layer[columns.order]
        chosen = ((layer >= sources.start) & (layer < sources.stop)).nonzero()[:, 0]
        index = columns.order[chosen]
        written = run.final.new_empty(len(index), run.final.shape[1])
        for source in sources:
            here = (active.layer[index] == source).nonzero()[:, 0]
            rows = run.clt.decoder_rows(source, target, active.feature[index[here]])
            written[here] = rows * active.value[index[here], None]
        bounds = columns.first[:, [sources.start, sources.stop]]
        parts = written.split((bounds[:, 1] - bounds[:, 0]).tolist())
        return [(part, *pair) for part, pair in zip(parts, bounds.tolist(), strict=True)]
