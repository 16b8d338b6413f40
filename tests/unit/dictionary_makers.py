"""Random dictionaries, and the same formulas written in NumPy float64 without the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mechatlas.dictionaries.activations import Identity, JumpReLU, ReLU, TopK
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.normalisation import Normalisation

ACTIVATIONS = ("relu", "topk", "jumprelu", "identity")


def random_dictionary(
    activation: str = "relu",
    *,
    latents: int = 40,
    d_in: int = 12,
    d_out: int | None = None,
    normalisation: str = "none",
    tied: bool = False,
    subtract_bias: bool = True,
    skip: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    about: dict[str, Any] | None = None,
) -> SparseAutoencoder:
    """Return a dictionary with normal weights."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    d_out = d_out or d_in
    kinds = {
        "relu": ReLU,
        "identity": Identity,
        "topk": lambda: TopK(5),
        "jumprelu": lambda: JumpReLU(normal(latents).abs()),
    }
    return SparseAutoencoder(
        normal(latents, d_in),
        normal(latents),
        None if tied else normal(latents, d_out),
        normal(d_out),
        kinds[activation](),
        normalisation=Normalisation(normalisation),
        subtract_bias=subtract_bias,
        skip=normal(d_out, d_in) if skip else None,
        about=about,
    )


def reference(sae: SparseAutoencoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return latents [N, F] and reconstructions [N, d_out] in float64, token by token and latent by latent."""
    w = {name: tensor.double().numpy() for name, tensor in sae.tensors().items()}
    latents, outputs = [], []
    for token in x.astype(np.float64):
        read, back = token, lambda y: y
        if sae.normalisation.kind == "layer_norm":
            mean = sum(token) / len(token)
            std = (sum((token - mean) ** 2) / (len(token) - 1)) ** 0.5
            read = (token - mean) / (std + sae.normalisation.eps)
            back = lambda y, mean=mean, std=std: y * std + mean  # noqa: E731
        elif sae.normalisation.kind == "unit_norm":
            factor = (len(token) / sum(token**2)) ** 0.5
            read = token * factor
            back = lambda y, factor=factor: y / factor  # noqa: E731
        if sae.subtract_bias:
            read = read - w["decoder_bias"]
        pre = np.array(
            [row @ read + bias for row, bias in zip(w["encoder"], w["encoder_bias"], strict=True)]
        )
        z = _activate(sae, pre, w)
        decoder = w.get("decoder", w["encoder"])
        output = back(
            sum(value * row for value, row in zip(z, decoder, strict=True)) + w["decoder_bias"]
        )
        outputs.append(output + w["skip"] @ token if "skip" in w else output)
        latents.append(z)
    return np.array(latents), np.array(outputs)


def _activate(sae: SparseAutoencoder, pre: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    match sae.activation.name:
        case "relu":
            return np.where(pre > 0, pre, 0)
        case "jumprelu":
            return np.where((pre > w["threshold"]) & (pre > 0), pre, 0)
        case "topk":
            kept = np.argsort(-pre)[: sae.activation.k]
            z = np.zeros_like(pre)
            z[kept] = np.maximum(pre[kept], 0) if sae.activation.relu else pre[kept]
            return z
    return pre
