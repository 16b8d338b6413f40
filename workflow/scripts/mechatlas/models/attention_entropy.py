"""A penalty on the entropy of attention, so that the heads of a trained model are legible.

Small models trained on next-token loss alone spread every head over many tokens at once. A small cost for the entropy
of attention rows makes each head look at few tokens, and a head with nothing to do rest on BOS, as heads of large
models do by themselves; the loss hardly changes. The models' cards say that they were trained so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

IMPLEMENTATION = "mechatlas_attention_entropy"
WINDOW_SHARE = 4
"""The entropy is measured on one window in so many of a batch; all attention still runs fused."""


def watch_entropy(model: Any) -> None:
    """Make a transformers model keep the entropy of its attention for `mean_entropy`; its outputs stay the same."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    model.set_attn_implementation(IMPLEMENTATION)


def mean_entropy(model: Any) -> torch.Tensor:
    """Return the mean entropy of attention rows in the latest training forward pass, over layers and heads, in nats.

    It is measured on every fourth window of the batch.
    """
    return torch.stack(
        [module.row_entropy for module in model.modules() if hasattr(module, "row_entropy")]
    ).mean()


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if module.training:
        module.row_entropy = row_entropy(query[::WINDOW_SHARE], key[::WINDOW_SHARE], scaling)
    output = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling
    )
    return output.transpose(1, 2), None


def row_entropy(query: torch.Tensor, key: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Return the mean entropy of causal attention rows, in nats.

    Parameters
    ----------
    query, key : torch.Tensor
        [B, H, T, d_head].
    scaling : float or None
        Factor of the scores; ``d_head ** -0.5`` if None.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)) * scale
    length = scores.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    log_rows = torch.log_softmax(scores.masked_fill(future, -1e9), dim=-1)
    return -(log_rows.exp() * log_rows).sum(-1).mean()
