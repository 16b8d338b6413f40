"""Many variants of a run at once, each resumed where it first differs from the run it varies.

A variant starts from residuals of the base run with a change at one place, so nothing before that place is computed
again. Variants that start in different layers join one growing batch ``[V, N, S, d]`` (V variants of N prompts), which
keeps matrix products large; tokens that no variant can change (a common prefix) enter only as cached keys and values;
and the last block runs for the last token alone. Everything is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mechatlas.circuits.heads import HeadWeights, attend
from mechatlas.models.transformer import Transformer, rotate

ROWS_ON_CPU, ROWS_ON_DEVICE = 2400, 2**16  # tokens of all variants that run at once


@dataclass(frozen=True)
class Replacement:
    """What removed nodes write instead of their own output.

    Attributes
    ----------
    z : list of Tensor [N or 1, S, H, dh]
        Per layer.
    mlp : list of Tensor [N or 1, S, d]
        Per layer.
    """

    z: list[Tensor]
    mlp: list[Tensor]

    def select(self, pairs: slice) -> Replacement:
        """Return the part for some of the prompts."""
        return Replacement(
            *([x if len(x) == 1 else x[pairs] for x in part] for part in (self.z, self.mlp))
        )


@dataclass(frozen=True)
class Start:
    """Where variants leave the base run.

    Attributes
    ----------
    layer : int
        L is the end of the last block.
    after_attention : bool
        Whether the rows are the residuals between attention and MLP of the layer, not those before it.
    rows : callable
        Gives the residuals ``[v, N, S, d]``.
    """

    layer: int
    after_attention: bool
    rows: Callable[[], Tensor]


class Run:
    """N prompts of equal length under a set of kept nodes, and variants of that run.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
    first : int
        Positions before it are the same in every variant and run once; all residuals below are those of the
        S = T - first positions from there on.
    replacement : Replacement, optional
        What nodes outside the kept set write.
    keep : bool Tensor [L, H + 1], optional
        The kept nodes (see `mechatlas.circuits.components`); all by default.
    """

    def __init__(
        self,
        model: Transformer,
        tokens: Tensor,
        first: int = 0,
        replacement: Replacement | None = None,
        keep: Tensor | None = None,
    ):
        config = model.config
        self.model, self.replacement, self.first = model, replacement, first
        self.keep = keep
        if keep is None:
            self.keep = torch.ones(config.n_layers, config.n_heads + 1, dtype=torch.bool)
        rotary = model.rotary(tokens.shape[1])
        self.rotary = rotary and tuple(part[first:] for part in rotary)
        self.prefix = _prefix(model, tokens[:, :first]) if first else None
        self._pre = [model.embed(tokens)[:, first:]]
        self._attention: tuple[int, tuple[Tensor, ...]] | None = None
        self._parts: dict[int, tuple[tuple[int, ...], HeadWeights]] = {}
        self._constants: dict[int, Tensor] = {}

    def rebase(self, keep: Tensor) -> None:
        """Change the kept nodes of the run that variants start from; layers below the change stay cached."""
        differ = (keep != self.keep).any(1).nonzero()
        if len(differ):
            changed = int(differ[0])
            del self._pre[changed + 1 :]
            if self._attention is not None and self._attention[0] > changed:
                self._attention = None
        self.keep = keep

    def pre(self, layer: int) -> Tensor:
        """Return the residuals before a layer (L: after the last one), ``[N, S, d]``."""
        while len(self._pre) <= layer:
            below = len(self._pre) - 1
            mid = self.mid(below)
            self._pre.append(mid + self.mlp_out(mid[None], below, self.keep[below][None])[0])
        return self._pre[layer]

    def mid(self, layer: int) -> Tensor:
        """Return the residuals between attention and MLP of a layer, ``[N, S, d]``."""
        return self.pre(layer) + self.mixed(layer, self.keep[layer][None])[0]

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v and z of all heads of a layer, ``[N, S or T, heads, dh]``."""
        if self._attention is None or self._attention[0] != layer:
            q, k, v = self.model.qkv(self.pre(layer), layer, self.rotary)
            k, v = self._behind_prefix(k, v, layer)
            z = attend(q, k, v, self.model.attention_scale(layer))
            self._attention = layer, (q, k, v, z)
        return self._attention[1]

    def mixed(self, layer: int, keeps: Tensor) -> Tensor:
        """Return what attention writes in the base run with other sets of kept heads, ``[v, N, S, d]``."""
        z = self.attention(layer)[-1]
        heads = keeps[:, :-1].to(z.device)
        if not bool(heads.all()):
            gate = heads[:, None, None, :, None]
            z = torch.where(gate, z, self.replacement.z[layer])
        return self._written(z.expand(len(keeps), *z.shape[-4:]), layer)

    def finish(self, starts: Sequence[Start], keeps: Tensor | None = None) -> Tensor:
        """Run variants to the end.

        Parameters
        ----------
        starts : sequence of Start
            In the order in which they join.
        keeps : bool Tensor [V, L, H + 1], optional
            Kept nodes of every variant.

        Returns
        -------
        Tensor [V, N, d]
            Normalised final residuals of the last token.
        """
        last = self.model.config.n_layers - 1
        x = None
        for layer in range(starts[0].layer, last + 1):
            x = _joined(x, starts, layer, False)
            if x is not None:
                keep = None if keeps is None else keeps[: len(x), layer]
                x = (x[..., -1:, :] if layer == last else x) + self.attention_out(x, layer, keep)
            x = _joined(x, starts, layer, True, end=layer == last)
            keep = None if keeps is None else keeps[: len(x), layer]
            x = x + self.mlp_out(x, layer, keep)
        x = _joined(x, starts, last + 1, False, end=True)
        weights = self.model.weights
        return self.model.norm(x[..., -1, :], weights.final_norm, weights.final_norm_bias)

    def attention_out(self, x: Tensor, layer: int, keep: Tensor | None) -> Tensor:
        """Return what attention writes given residuals ``[v, N, S, d]``; in the last layer for the last token only."""
        variants, last = x.shape[:2], layer == self.model.config.n_layers - 1
        queries = slice(-1, None) if last else slice(None)
        heads = None if keep is None else keep[:, :-1]
        if heads is None or bool(heads.all()):
            q, k, v = self.model.qkv(x.flatten(0, 1), layer, self.rotary)
            k, v = self._behind_prefix(k, v, layer)
            z = attend(q[:, queries], k, v, self.model.attention_scale(layer))
            return self._written(z.unflatten(0, variants), layer)
        replaced = self.replacement.z[layer][:, queries]
        constant = self._constant(layer)[:, :, queries]
        used = heads.any(0).nonzero()[:, 0].to(x.device)
        if not len(used):
            return constant.expand(*variants, *constant.shape[2:])
        part = self._part(layer, used)
        z = self._z_of(x, layer, part, queries).unflatten(0, variants)
        gate = heads.to(x.device)[:, None, None, used, None]
        change = torch.where(gate, z - replaced[:, :, used], 0)
        return constant + change.flatten(-2) @ part.w_o

    def mlp_out(self, x: Tensor, layer: int, keep: Tensor | None) -> Tensor:
        """Return what the MLP of a layer writes given residuals ``[v, N, S, d]``."""
        if keep is None or bool(keep[:, -1].all()):
            return self.model.mlp(x, layer)
        replaced = self.replacement.mlp[layer][:, -x.shape[-2] :]
        if not bool(keep[:, -1].any()):
            return replaced.expand_as(x)
        gate = keep[:, -1, None, None, None].to(x.device)
        return torch.where(gate, self.model.mlp(x, layer), replaced)

    def _constant(self, layer: int) -> Tensor:
        """Return what attention writes with all its heads removed, ``[1, N or 1, S, d]``."""
        if layer not in self._constants:
            self._constants[layer] = self._written(self.replacement.z[layer][None], layer)
        return self._constants[layer]

    def _written(self, z: Tensor, layer: int) -> Tensor:
        weights = self.model.weights.layers[layer]
        return F.linear(z.flatten(-2), weights.w_o.mT, weights.b_o)

    def _behind_prefix(
        self, k: Tensor, v: Tensor, layer: int, heads: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        if self.prefix is None:
            return k, v
        repeats = len(k) // len(self.prefix[layer][0])
        return tuple(
            torch.cat([old[:, :, heads].repeat(repeats, 1, 1, 1), new], dim=1)
            for old, new in zip(self.prefix[layer], (k, v), strict=True)
        )

    def _part(self, layer: int, used: Tensor) -> HeadWeights:
        """Return the weights of some heads; the latest choice of each layer is kept."""
        key = tuple(used.tolist())
        if self._parts.get(layer, ((), None))[0] != key:
            self._parts[layer] = key, HeadWeights.of(self.model, layer, used)
        return self._parts[layer][1]

    def _z_of(self, x: Tensor, layer: int, part: HeadWeights, queries: slice) -> Tensor:
        model, weights = self.model, self.model.weights.layers[layer]
        x = model.norm(x.flatten(0, 1), weights.norm1, weights.norm1_bias)
        qkv = F.linear(x, part.w_qkv.mT, part.b_qkv).unflatten(-1, (-1, model.config.d_head))
        q, k, v = qkv.split((len(part.group), len(part.shared), len(part.shared)), dim=2)
        if self.rotary is not None:
            q, k = rotate(q, *self.rotary), rotate(k, *self.rotary)
        k, v = self._behind_prefix(k, v, layer, part.shared)
        if len(part.group) != len(part.shared):
            k, v = k[:, :, part.group], v[:, :, part.group]
        return attend(q[:, queries], k, v, model.attention_scale(layer))


def first_difference(*tokens: Tensor) -> int:
    """Return the first position at which token arrays ``[N, T]`` of paired prompts differ (at most T - 1)."""
    differ = torch.stack([(tokens[0] != other).any(0) for other in tokens[1:]]).any(0).nonzero()
    return min(int(differ[0]) if len(differ) else tokens[0].shape[1], tokens[0].shape[1] - 1)


def rows_at_once(device: torch.device) -> int:
    """Return how many tokens of variants to run at once: enough for full speed, little enough for the caches."""
    return ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_DEVICE


def pair_slices(pairs: int, length: int, rows: int) -> list[slice]:
    """Cut N prompts into slices of at most ``rows`` tokens (at least one prompt each)."""
    size = max(1, rows // length)
    return [slice(start, min(start + size, pairs)) for start in range(0, pairs, size)]


def _prefix(model: Transformer, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of tokens that every variant shares, per layer."""
    cache: dict[tuple[str, int], Tensor] = {}
    hooks = {
        point: lambda value, layer, point=point: cache.__setitem__((point, layer), value)
        for point in "kv"
    }
    model.forward(tokens, hooks, logits=False)
    return [(cache["k", layer], cache["v", layer]) for layer in range(model.config.n_layers)]


def _joined(
    x: Tensor | None, starts: Sequence[Start], layer: int, after_attention: bool, end: bool = False
) -> Tensor | None:
    new = [s.rows() for s in starts if (s.layer, s.after_attention) == (layer, after_attention)]
    if end:
        new = [rows[..., -1:, :] for rows in new]
    parts = ([] if x is None else [x]) + new
    if len(parts) < 2:
        return parts[0] if parts else None
    return torch.cat(parts)
