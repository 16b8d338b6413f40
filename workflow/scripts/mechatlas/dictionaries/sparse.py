"""Decoding of sparse latents without the zeros."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Return the same ``[n_tokens, d]`` for latents given as a list of (token, latent, value), sorted by token.

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
