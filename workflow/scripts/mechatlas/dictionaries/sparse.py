"""Sparse latents without the zeros: encoding with sparse gradients, and decoding.

Latents are *events*: (token, latent, value), sorted by token. A product of a sparse matrix with a dense one is then a
weighted sum of rows for each token (or, in the backward pass, for each latent), which ``embedding_bag`` does in one
pass without making the dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Share of active latents below which the sparse training step beats the dense one (benchmarks/bench_dictionaries.py).
SPARSE_BELOW = 0.05

#: Chooses events from pre-activations ``[N, F]``: tokens and latents, int64 [E], sorted by token.
Select = Callable[[Tensor], tuple[Tensor, Tensor]]


def decode_topk(values: Tensor, indices: Tensor, decoder: Tensor) -> Tensor:
    """Return ``sum_j values[n, j] decoder[indices[n, j]]``, ``[N, d]``.

    Parameters
    ----------
    values : Tensor [N, k]
    indices : Tensor [N, k] int64
        Rows of the decoder; a row may occur twice.
    decoder : Tensor [F, d]

    Notes
    -----
    One pass over k rows of the decoder for each token, N k d multiplications in place of N F d.
    """
    return F.embedding_bag(indices, decoder, per_sample_weights=values, mode="sum")


def decode_events(
    tokens: Tensor, latents: Tensor, values: Tensor, decoder: Tensor, n_tokens: int
) -> Tensor:
    """Return the same ``[n_tokens, d]`` for events.

    Parameters
    ----------
    tokens, latents : Tensor [E] int64
    values : Tensor [E]
    decoder : Tensor [F, d]
    n_tokens : int
    """
    counts = torch.bincount(tokens, minlength=n_tokens)
    offsets = counts.cumsum(0) - counts
    return F.embedding_bag(latents, decoder, offsets, per_sample_weights=values, mode="sum")


def encode_events(
    x: Tensor, encoder: Tensor, bias: Tensor, select: Select, pre: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, latents and values ``[E]`` of the selected pre-activations of ``x [N, d]``.

    Who has the pre-activations already gives them as ``pre [N, F]``. The gradient flows through the selected values
    only and costs E d multiplications for ``encoder [F, d]`` and as many for ``x``, in place of N F d each.
    """
    return _EncodeEvents.apply(x, encoder, bias, select, pre)


class _EncodeEvents(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder: Tensor, bias: Tensor, select: Select, pre: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        pre = F.linear(x, encoder, bias) if pre is None else pre
        tokens, latents = select(pre)
        ctx.save_for_backward(x, encoder, tokens, latents)
        ctx.mark_non_differentiable(tokens, latents)
        return tokens, latents, pre[tokens, latents]

    @staticmethod
    def backward(ctx: Any, _: Any, __: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, tokens, latents = ctx.saved_tensors
        n_latents = encoder.shape[0]
        order = latents.argsort(stable=True)
        by_latent = decode_events(latents[order], tokens[order], gradient[order], x, n_latents)
        bias = gradient.new_zeros(n_latents)
        bias.index_add_(0, latents, gradient)
        inputs = None
        if ctx.needs_input_grad[0]:
            inputs = decode_events(tokens, latents, gradient, encoder, len(x))
        return inputs, by_latent, bias, None, None


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of values ``[n]`` as a scalar; on the CPU by NumPy, whose selection is vectorised."""
    if values.device.type != "cpu":
        return values.topk(k, sorted=False).values.min()
    place = len(values) - k
    return torch.tensor(np.partition(values.numpy(), place)[place])


def select_topk(k: int) -> Select:
    """Return a function that selects the k largest pre-activations of each token, those above 0."""

    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        values, latents = pre.topk(k, dim=-1, sorted=False)
        tokens, place = (values > 0).nonzero(as_tuple=True)
        return tokens, latents[tokens, place]

    return select


def select_batch_topk(k: int) -> Select:
    """Return a function that selects the k N largest pre-activations of N tokens together, those above 0.

    After Bussmann, Leask and Nanda 2024 (arXiv 2412.06410).
    """

    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        values, places = pre.flatten().topk(k * len(pre), sorted=False)
        places = places[values > 0].sort().values
        return places // pre.shape[1], places % pre.shape[1]

    return select
