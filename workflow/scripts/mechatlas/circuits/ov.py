"""What heads write about a token that they attend to: copying, succession, and the whole matrix between tokens.

A head that attends to one token only writes OV(x) = (norm(x) W_V + b_V) W_O. Taken through the final norm and the
unembedding, this says which tokens the head promotes (Elhage et al. 2021). The input x is the residual after the first
block, where a token's own embedding has become what later layers read (Wang et al. 2022, arXiv 2211.00593, appendix H;
Lan, Torr, Barez 2023, arXiv 2311.04131). All heads are computed in one batched product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechatlas.models.transformer import Transformer

ROWS_PER_CHUNK = 2**23  # vocabulary logits held at once


@torch.inference_mode()
def token_residuals(model: Transformer, tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the residual after the first block at some positions.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
        Prompts.
    positions : int64 Tensor [N, K]

    Returns
    -------
    Tensor [N, K, d]
    """
    seen: list[Tensor] = []

    def keep(value: Tensor, layer: int) -> None:
        if layer == 0:
            seen.append(value)

    model.forward(tokens.to(model.device), {"resid_post": keep}, logits=False)
    return seen[0].take_along_dim(positions.to(model.device)[..., None], dim=1)


@torch.inference_mode()
def ov_outputs(model: Transformer, x: Tensor) -> Tensor:
    """Return what every head writes when it attends to residuals ``x [K, d]`` only, ``[L, H, K, d]``."""
    config = model.config
    groups = config.n_heads // config.n_kv_heads
    out = []
    for layer, weights in enumerate(model.weights.layers):
        value = slice(-config.n_kv_heads * config.d_head, None)
        v = model.norm(x, weights.norm1, weights.norm1_bias) @ weights.w_qkv[:, value]
        if weights.b_qkv is not None:
            v = v + weights.b_qkv[value]
        v = v.unflatten(-1, (config.n_kv_heads, config.d_head)).repeat_interleave(groups, dim=1)
        out.append(torch.einsum("khe,hed->hkd", v, model.output_weights(layer)))
    return torch.stack(out)


@torch.inference_mode()
def ov_matrix(model: Transformer, x: Tensor, tokens: Tensor, *, sign: int = 1) -> Tensor:
    """Return the logits that every head gives to some tokens, by the token that it attends to.

    Parameters
    ----------
    model : Transformer
    x : Tensor [K, d]
        Residuals of the attended tokens (`token_residuals`).
    tokens : int64 Tensor [J]
        Read out.
    sign : {1, -1}
        -1 reads what a head writes against, for negative heads.

    Returns
    -------
    Tensor [L, H, K, J]
    """
    return _normalised(model, sign * ov_outputs(model, x)) @ model.weights.unembedding[tokens].mT


@torch.inference_mode()
def ov_ranks(model: Transformer, x: Tensor, targets: Tensor, *, sign: int = 1) -> Tensor:
    """Return the rank of target tokens in the whole vocabulary among what each head promotes.

    Parameters
    ----------
    model : Transformer
    x : Tensor [K, d]
    targets : int64 Tensor [K, J]
        J tokens for each attended one, such as itself and the next member.
    sign : {1, -1}

    Returns
    -------
    int64 Tensor [L, H, K, J]
        0 is the most promoted token; tokens with the same logit count as more promoted, so that a head that writes
        nothing has no hits.
    """
    out = _normalised(model, sign * ov_outputs(model, x))
    unembedding, targets = model.weights.unembedding, targets.to(model.device)
    wanted = torch.einsum("lhkd,kjd->lhkj", out, unembedding[targets])
    size = max(1, ROWS_PER_CHUNK // max(1, out[..., 0].numel()))
    above = torch.zeros(wanted.shape, dtype=torch.int64, device=out.device)
    for start in range(0, len(unembedding), size):
        part = unembedding[start : start + size]
        logits, ids = out @ part.mT, torch.arange(start, start + len(part), device=out.device)
        for j in range(targets.shape[1]):
            other = ids != targets[:, j, None]
            above[..., j] += ((logits >= wanted[..., j, None]) & other).sum(-1)
    return above


def hit_share(ranks: Tensor, best: int = 5) -> Tensor:
    """Return the share of attended tokens whose target is among the ``best`` promoted, ``[L, H, J]``."""
    return (ranks < best).double().mean(2)


def _normalised(model: Transformer, x: Tensor) -> Tensor:
    return model.norm(x, model.weights.final_norm, model.weights.final_norm_bias)
