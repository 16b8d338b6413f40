"""Widths of hook points."""

from __future__ import annotations

from mechatlas.models.config import ModelConfig


def point_width(point: str, config: ModelConfig) -> int:
    """Return the number of values of a token at a hook point, heads side by side."""
    heads = {
        "q": config.n_heads,
        "z": config.n_heads,
        "k": config.n_kv_heads,
        "v": config.n_kv_heads,
    }
    if point in heads:
        return heads[point] * config.d_head
    return config.d_mlp if point in ("mlp_pre", "mlp_post") else config.d_model
