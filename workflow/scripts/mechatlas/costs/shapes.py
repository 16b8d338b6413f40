"""Sizes of models, which all costs depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechatlas.io import UserError
from mechatlas.models.config import ModelConfig, read_config


@dataclass(frozen=True)
class Shape:
    """Layers L, heads H and key/value heads, widths d and d_head, MLP width and its matrices, vocabulary V."""

    layers: int
    heads: int
    kv_heads: int
    d: int
    d_head: int
    d_mlp: int
    mlp_matrices: int
    vocab: int

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        """Return the shape of a model's configuration."""
        matrices = 2 if config.architecture == "gpt2" else 3
        return cls(
            config.n_layers, config.n_heads, config.n_kv_heads, config.d_model, config.d_head,
            config.d_mlp, matrices, config.vocab_size,
        )  # fmt: skip

    @property
    def weights(self) -> int:
        """Weights of all blocks N, without the embedding."""
        attention = self.d * self.d_head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + self.mlp_matrices * self.d * self.d_mlp)

    @property
    def all_weights(self) -> int:
        """Weights with one embedding."""
        return self.weights + self.vocab * self.d

    def forward(self, tokens: float, window: int, *, logits: bool = False) -> float:
        """Return the floating-point operations of forward passes over ``tokens`` in windows of ``window``.

        2 N for each token, 4 H d_head T for scores and sums of values in each layer, 2 V d for logits.
        """
        attention = 4 * self.layers * self.heads * self.d_head * window
        return tokens * (2 * self.weights + attention + 2 * self.vocab * self.d * logits)


#: Models of the hub whose shape is known before they are downloaded.
KNOWN = {
    "openai-community/gpt2": Shape(12, 12, 12, 768, 64, 3072, 2, 50257),
    "openai-community/gpt2-medium": Shape(24, 16, 16, 1024, 64, 4096, 2, 50257),
    "openai-community/gpt2-large": Shape(36, 20, 20, 1280, 64, 5120, 2, 50257),
    "openai-community/gpt2-xl": Shape(48, 25, 25, 1600, 64, 6400, 2, 50257),
    "meta-llama/Llama-2-7b-hf": Shape(32, 32, 32, 4096, 128, 11008, 3, 32000),
}


def shape_of(name: str, entry: Mapping[str, Any], folder: str | Path) -> Shape:
    """Return the shape of a model of the configuration.

    Parameters
    ----------
    name : str
        Key of ``models``.
    entry : mapping
        Its value, with ``path`` or ``hub``.
    folder : str or Path
        Where its files are or will be.

    Raises
    ------
    UserError
        If a model of the hub is neither downloaded nor known.
    """
    if (Path(folder) / "config.json").is_file():
        return Shape.of(read_config(folder))
    if entry.get("hub") in KNOWN:
        return KNOWN[entry["hub"]]
    raise UserError(
        f"models.{name}: the size of {entry.get('hub', folder)} is not known before it is here; fetch it first: "
        f"snakemake {folder}"
    )
