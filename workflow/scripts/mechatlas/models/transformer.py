"""The forward pass of GPT-2- and Llama-type models, with frozen weights and named hook points.

The functions read like the formulas (Radford et al. 2019; Touvron et al. 2023). A hook point costs nothing when
no hook is set, and attention runs fused unless a hook needs the scores or the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.io import UserError
from mechatlas.models.cache import KeyValueCache
from mechatlas.models.config import Llama3Rope, ModelConfig, read_config
from mechatlas.models.hooks import NORM_PARTS, SCORE_POINTS, Hook, bind
from mechatlas.models.hooks import POINTS as POINTS
from mechatlas.models.precision import set_precision
from mechatlas.models.weights import (
    Weights,
    load_weights,
    random_hash,
    random_weights,
    weights_hash,
)

ACTIVATIONS = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
LOGITS_PER_CHUNK = 2**24  # entries of the vocabulary logits that `losses` holds at once (64 MiB)


class Transformer:
    """A language model with frozen weights.

    Parameters
    ----------
    config : ModelConfig
    weights : Weights
    digest : str or callable
        What `hash` returns: identifies the weights in provenance records.

    Notes
    -----
    Hook points and shapes (B windows, T tokens, H heads, Hkv key/value heads, dh head size, d model width, m MLP
    width): ``embed``, ``resid_pre``, ``attn_in`` (normalised), ``attn_out``, ``resid_mid``, ``mlp_in``
    (normalised), ``mlp_out``, ``resid_post``, ``final_norm`` are ``[B, T, d]``; ``q`` and ``z`` are
    ``[B, T, H, dh]``; ``k`` and ``v`` are ``[B, T, Hkv, dh]`` (q and k after the rotary embedding);
    ``attn_scores`` (scaled, masked with -inf) and ``pattern`` are ``[B, H, T, T]``; ``mlp_pre`` is the gate
    before and ``mlp_post`` what the output matrix reads after the nonlinearity, ``[B, T, m]``; ``logits`` is
    ``[B, T, V]``. A hook gets the value and the layer (0 for ``embed``, n_layers for ``final_norm`` and
    ``logits``); a tensor that it returns replaces the value. Do not change the value in place.

    Inside the norms and the softmax there are more (`mechatlas.models.hooks`): ``attn_in_centred``,
    ``attn_in_scale``, ``attn_in_scaled``, the same for ``mlp_in`` and ``final_norm``, and ``attn_denominator``
    ``[B, H, T, 1]``. With a cache, T counts the new tokens only, and the last axis of scores and pattern is
    [..., S], all positions up to the last.
    """

    def __init__(self, config: ModelConfig, weights: Weights, digest: str | Callable[[], str] = ""):
        self.config = config
        self.weights = weights
        self._digest = digest

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights file(s), or of architecture and seed for random weights."""
        return self._digest() if callable(self._digest) else self._digest

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return self.weights.embedding.dtype

    def forward(
        self,
        tokens: Tensor,
        hooks: Mapping[str, Hook] | None = None,
        *,
        logits: bool = True,
        resume: tuple[int, Tensor] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Run the model on ``tokens [B, T]`` (int64).

        ``resume=(layer, x)`` starts at a layer from its ``resid_pre`` ``x [B, T, d]``, so that changes in late
        layers do not pay for the early ones. With a ``cache`` the tokens continue what it holds, and it holds
        them too afterwards.

        Returns
        -------
        Tensor
            Logits ``[B, T, V]``, or with ``logits=False`` the normalised final residual ``[B, T, d]``.

        Raises
        ------
        UserError
            If T exceeds the model's context, or what is left of the cache.
        ValueError
            If a hook is set on a point that does not exist, or ``resume`` comes with a cache.
        """
        if resume is not None and cache is not None:
            raise ValueError(
                "resume leaves the first layers out, which a cache would miss; give one of the two"
            )
        length = tokens.shape[1]
        positions = cache.begin(length) if cache is not None else None
        hooks = bind(hooks, positions, length)
        first, x = resume or (0, _hooked(hooks, "embed", self.embed(tokens, positions), 0))
        rotary = self.rotary(length) if cache is None else cache.angles(self.rotary)
        for layer in range(first, self.config.n_layers):
            x = _hooked(hooks, "resid_pre", x, layer)
            x = x + self._attention(x, layer, rotary, hooks, cache)
            x = _hooked(hooks, "resid_mid", x, layer)
            x = x + self.mlp(x, layer, hooks)
            x = _hooked(hooks, "resid_post", x, layer)
        if cache is not None:
            cache.commit()
        weights, last = self.weights, self.config.n_layers
        x = self._norm(x, weights.final_norm, weights.final_norm_bias, "final_norm", last, hooks)
        return _hooked(hooks, "logits", self.unembed(x), last) if logits else x

    def unembed(self, x: Tensor) -> Tensor:
        """Map normalised final residuals ``[..., d]`` to logits ``[..., V]``."""
        return F.linear(x, self.weights.unembedding)

    def losses(
        self,
        tokens: Tensor,
        hooks: Mapping[str, Hook] | None = None,
        *,
        resume: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Return next-token cross-entropies in nats, ``[B, T-1]`` float32 (``resume`` as in `forward`).

        The logits of the vocabulary exist only for a bounded number of positions at a time (unless a hook
        asks for them).
        """
        targets = tokens[:, 1:].flatten()
        if hooks and "logits" in hooks:
            rows = self.forward(tokens, hooks, resume=resume)[:, :-1].flatten(0, 1)
            losses = F.cross_entropy(rows.float(), targets, reduction="none")
        else:
            rows = self.forward(tokens, hooks, logits=False, resume=resume)[:, :-1].flatten(0, 1)
            size = max(1, LOGITS_PER_CHUNK // self.config.vocab_size)
            losses = torch.cat(
                [
                    F.cross_entropy(self.unembed(part).float(), target, reduction="none")
                    for part, target in zip(rows.split(size), targets.split(size), strict=True)
                ]
            )
        return losses.view(tokens.shape[0], -1)

    def value_norms(self, v: Tensor, layer: int) -> Tensor:
        """Return ``||v_k W_O^h||_2`` for every head and key.

        Parameters
        ----------
        v : Tensor [B, T, Hkv, dh]
            Values as the hook point ``v`` gives them.
        layer : int

        Returns
        -------
        Tensor [B, H, T], at least float32
            The norm of what each head would write if it attended to one position only. It is computed as
            sqrt(v G v') with the Gram matrix G = W_O W_O' of the head's output weights, so that no
            ``[B, T, H, d_model]`` tensor is made.
        """
        gram = self._grams[layer]
        batch, length = v.shape[:2]
        per_head = v.to(gram.dtype).permute(2, 0, 1, 3).flatten(1, 2)
        if self.config.n_kv_heads != self.config.n_heads:
            per_head = per_head.repeat_interleave(
                self.config.n_heads // self.config.n_kv_heads, dim=0
            )
        squares = (per_head @ gram).mul_(per_head).sum(-1).clamp_min_(0)
        return squares.sqrt_().view(-1, batch, length).transpose(0, 1)

    def output_weights(self, layer: int) -> Tensor:
        """Return W_O of a layer as a view ``[H, d_head, d_model]``."""
        config = self.config
        return self.weights.layers[layer].w_o.view(config.n_heads, config.d_head, config.d_model)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the first ``resid_pre`` ``[B, T, d]`` of tokens ``[B, T]``; raise `UserError` if T is too long.

        The tokens are at the positions 0 to T - 1, or at ``positions [B or 1, T]``.
        """
        length = tokens.shape[1]
        if length > self.config.n_ctx:
            raise UserError(
                f"a sequence of {length} tokens is longer than the model's context of {self.config.n_ctx}; "
                "set window_len to at most that"
            )
        x = F.embedding(tokens, self.weights.embedding)
        if self.weights.positions is None:
            return x
        return x + self.weights.positions[slice(length) if positions is None else positions]

    def norm(self, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Normalise residuals ``[..., d]`` (LayerNorm or RMSNorm) with a norm's scale and bias."""
        if self.config.architecture == "gpt2":
            return F.layer_norm(x, x.shape[-1:], scale, bias, self.config.norm_eps)
        # At least float32 inside, as the reference does, because bfloat16 squares lose too much.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(-1, keepdim=True)
        return scale * (wide * torch.rsqrt(mean_square + self.config.norm_eps)).to(x.dtype)

    def qkv(
        self,
        x: Tensor,
        index: int,
        rotary: tuple[Tensor, Tensor] | None,
        hooks: Mapping[str, Hook] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries ``[B, T, H, dh]``, keys and values ``[B, T, Hkv, dh]`` of a layer.

        ``x [B, T, d]`` is its ``resid_pre`` (the norm is applied here); ``rotary`` is that of the positions.
        """
        config, layer, hooks = self.config, self.weights.layers[index], hooks or {}
        x = self._norm(x, layer.norm1, layer.norm1_bias, "attn_in", index, hooks)
        qkv = _linear(x, layer.w_qkv, layer.b_qkv).unflatten(-1, (-1, config.d_head))
        q, k, v = qkv.split((config.n_heads, config.n_kv_heads, config.n_kv_heads), dim=2)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q = _hooked(hooks, "q", q, index)
        k = _hooked(hooks, "k", k, index)
        return q, k, _hooked(hooks, "v", v, index)

    def attention_scale(self, index: int) -> float:
        """Return the factor of the attention scores of a layer."""
        per_layer = index + 1 if self.config.scale_by_layer else 1
        return 1 / math.sqrt(self.config.d_head) / per_layer

    def mlp(self, x: Tensor, index: int, hooks: Mapping[str, Hook] | None = None) -> Tensor:
        """Return what the MLP of a layer writes, ``[..., d]``, given its ``resid_mid`` (the norm is applied here)."""
        layer, hooks = self.weights.layers[index], hooks or {}
        x = self._norm(x, layer.norm2, layer.norm2_bias, "mlp_in", index, hooks)
        activation = ACTIVATIONS[self.config.activation]
        if layer.w_gate is None:
            pre = _hooked(hooks, "mlp_pre", _linear(x, layer.w_up, layer.b_up), index)
            post = activation(pre)
        else:
            pre = _hooked(hooks, "mlp_pre", _linear(x, layer.w_gate, layer.b_gate), index)
            post = activation(pre) * _linear(x, layer.w_up, layer.b_up)
        post = _hooked(hooks, "mlp_post", post, index)
        return _hooked(hooks, "mlp_out", _linear(post, layer.w_down, layer.b_down), index)

    def rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines of the positions 0 to length - 1, ``[T, 1, dh]`` (None for ``gpt2``)."""
        config = self.config
        if config.architecture != "llama":
            return None
        # In float32 whatever the model's dtype: checkpoints are trained with these rounded angles.
        frequencies = rotary_frequencies(config.d_head, config.rope_theta, config.rope_scaling)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None, :]
        return (
            angles.cos().to(self.device, self.dtype),
            angles.sin().to(self.device, self.dtype),
        )

    @cached_property
    def _grams(self) -> list[Tensor]:
        grams = []
        for layer in range(self.config.n_layers):
            w_o = self.output_weights(layer)
            w_o = w_o.to(torch.promote_types(w_o.dtype, torch.float32))
            grams.append(w_o @ w_o.mT)
        return grams

    def _norm(
        self,
        x: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        point: str,
        layer: int,
        hooks: Mapping[str, Hook],
    ) -> Tensor:
        """Normalise residuals at a hook point, step by step if a hook asks for a step."""
        if hooks and any(part in hooks for part in NORM_PARTS[point]):
            normalised = self._norm_in_steps(x, scale, bias, point, layer, hooks)
        else:
            normalised = self.norm(x, scale, bias)
        return _hooked(hooks, point, normalised, layer)

    def _norm_in_steps(
        self,
        x: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        point: str,
        layer: int,
        hooks: Mapping[str, Hook],
    ) -> Tensor:
        centred, root, scaled = NORM_PARTS[point]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.config.architecture == "gpt2":
            wide = wide - wide.mean(-1, keepdim=True)
        wide = _hooked(hooks, centred, wide, layer)
        deviation = (wide.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        deviation = _hooked(hooks, root, deviation, layer)
        wide = _hooked(hooks, scaled, wide / deviation, layer) * scale
        return (wide if bias is None else wide + bias).to(x.dtype)

    def _attention(
        self,
        x: Tensor,
        index: int,
        rotary: tuple | None,
        hooks: Mapping[str, Hook],
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        config, layer, mask = self.config, self.weights.layers[index], None
        q, k, v = self.qkv(x, index, rotary, hooks)
        causal = cache is None or cache.causal
        if cache is not None:
            k, v = cache.extend(index, k, v)
            mask = cache.mask
        scale = self.attention_scale(index)
        if hooks and any(point in hooks for point in SCORE_POINTS):
            z = _explicit_attention(q, k, v, scale, index, hooks, mask, causal)
        else:
            z = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask,
                is_causal=causal, scale=scale, enable_gqa=config.n_kv_heads != config.n_heads,
            ).transpose(1, 2)  # fmt: skip
        z = _hooked(hooks, "z", z, index)
        return _hooked(hooks, "attn_out", _linear(z.flatten(2), layer.w_o, layer.b_o), index)


def load(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    init: str = "trained",
    seed: int = 0,
) -> Transformer:
    """Load a GPT-2- or Llama-type Hugging Face folder.

    Parameters
    ----------
    folder : str or Path
        Holds ``config.json`` and, for ``init="trained"``, safetensors weights.
    device, dtype : str
        Such as ``"cpu"``, ``"cuda"``; one of `mechatlas.models.precision.DTYPES`.
    init : str
        ``"trained"`` reads the weights, ``"random"`` draws new ones (the random-weight control).
    seed : int
        Seed of the random weights.

    Raises
    ------
    UserError
        If config or weights are missing, damaged, inconsistent or of an unsupported type.
    """
    number = set_precision(dtype, device)
    config = read_config(folder)
    if init == "random":
        weights = random_weights(config, seed, device, number)
        return Transformer(config, weights, random_hash(config, seed))
    if init != "trained":
        raise ValueError(f"init must be 'trained' or 'random', not {init!r}")
    weights = load_weights(folder, config, device, number)
    return Transformer(config, weights, lambda: weights_hash(folder))


@lru_cache(maxsize=8)
def rotary_frequencies(d_head: int, theta: float, scaling: Llama3Rope | None) -> Tensor:
    """Return the rotary angles per position, ``[d_head / 2]`` float32 (Su et al. 2021, section 3.2.2).

    With ``scaling``, low frequencies are divided by its factor, high ones kept, and those between blended
    linearly in the number of turns per original context.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    if scaling is None:
        return frequencies
    # The order of operations fixes the float32 rounding to that of the reference implementation.
    turns = scaling.original_context / (2 * math.pi / frequencies)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - keep) * frequencies / scaling.factor + keep * frequencies
    scaled = torch.where(keep <= 0, frequencies / scaling.factor, blended)
    return torch.where(keep >= 1, frequencies, scaled)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys ``[B, T, H, dh]`` by the angles of their positions (see `Transformer.rotary`)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.mT, bias)


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    layer: int,
    hooks: Mapping[str, Hook],
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Return z ``[B, T, H, dh]`` by way of scores and pattern, which the hooks see.

    ``mask [B or 1, 1, T, S]`` (0 or -inf, added) says which keys a query may see; without it ``causal`` does.
    """
    batch, length, n_heads = q.shape[:3]
    groups = n_heads // k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if mask is None:
        mask = torch.zeros(length, k.shape[2], dtype=q.dtype, device=q.device)
        if causal:
            mask = mask.fill_(-math.inf).triu_(1)
    else:
        mask = mask.expand(batch, n_heads, -1, -1).flatten(0, 1)
    # Scale and mask in the same pass over the scores as the matrix product.
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
    scores = scores.unflatten(0, (batch, n_heads))
    scores = _hooked(hooks, "attn_scores", scores, layer)
    pattern = _hooked(hooks, "pattern", _softmax(scores, layer, hooks), layer)
    return (pattern.to(v.dtype) @ v).transpose(1, 2)


def _softmax(scores: Tensor, layer: int, hooks: Mapping[str, Hook]) -> Tensor:
    if "attn_denominator" not in hooks:
        return scores.softmax(-1)
    # Shifted by the largest score, without a gradient, which cancels in the quotient.
    numerators = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return numerators / _hooked(hooks, "attn_denominator", numerators.sum(-1, keepdim=True), layer)


def _hooked(hooks: Mapping[str, Hook], point: str, value: Tensor, layer: int) -> Tensor:
    hook = hooks.get(point)
    if hook is None:
        return value
    replaced = hook(value, layer)
    return value if replaced is None else replaced
