"""Direct logit attribution: what each part of the model writes into the answer's logit by itself.

The final norm is linear once its scale is frozen, so the logit difference is a sum over everything that was written to
the residual stream at the last token (Elhage et al. 2021; Wang et al. 2022, arXiv 2211.00593, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.averages import head_columns, mean_rows
from mechatlas.circuits.components import mlp_name
from mechatlas.circuits.effects import REPLICATES, effect_rows
from mechatlas.models.transformer import Transformer


@dataclass(frozen=True)
class DirectAttribution:
    """Shares of the logit difference, in logits; all parts together give it exactly.

    Attributes
    ----------
    heads : Tensor [N, L, H]
    mlps : Tensor [N, L]
    embedding : Tensor [N]
        Token and position embedding.
    biases : Tensor [N]
        Output biases of attention and bias of the final norm.
    """

    heads: Tensor
    mlps: Tensor
    embedding: Tensor
    biases: Tensor

    @property
    def total(self) -> Tensor:
        """Logit difference ``[N]``."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.embedding + self.biases


@torch.inference_mode()
def direct_attribution(
    model: Transformer, tokens: Tensor, answers: Tensor, wrong: Tensor
) -> DirectAttribution:
    """Split the logit differences of prompts ``[N, T]`` by who wrote them."""
    seen: dict[tuple[str, int], Tensor] = {}
    points = ("embed", "z", "mlp_out", "resid_post")
    hooks = {
        point: lambda value, layer, point=point: seen.__setitem__((point, layer), value[:, -1])
        for point in points
    }
    model.forward(tokens.to(model.device), hooks, logits=False)
    layers, weights = model.config.n_layers, model.weights
    direction = weights.unembedding[answers] - weights.unembedding[wrong]
    read = _reader(model, seen["resid_post", layers - 1], direction)
    heads = [
        torch.einsum("nhe,hed,nd->nh", seen["z", layer], model.output_weights(layer), read)
        for layer in range(layers)
    ]
    mlps = [(seen["mlp_out", layer] * read).sum(-1) for layer in range(layers)]
    biases = sum(b @ read.mT for layer in weights.layers if (b := layer.b_o) is not None)
    if weights.final_norm_bias is not None:
        biases = biases + direction @ weights.final_norm_bias
    return DirectAttribution(
        heads=torch.stack(heads, dim=1),
        mlps=torch.stack(mlps, dim=1),
        embedding=(seen["embed", 0] * read).sum(-1),
        biases=biases + torch.zeros(len(tokens), dtype=model.dtype, device=model.device),
    )


def attribution_table(
    attribution: DirectAttribution,
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average a direct attribution over prompts.

    Returns
    -------
    DataFrame
        One row per head, MLP, and one each for ``embed`` and ``bias``: ``component``, ``kind`` (head, mlp,
        other), ``layer`` and ``head`` (-1 where there is none), ``prompts``, ``logits`` (mean part of the logit
        difference) and ``share`` (of the mean logit difference, a ratio of means), with ``_low`` and ``_high``
        (bootstrap over prompts), ``p_fdr`` (two-sided, Benjamini-Hochberg over all rows). The shares add up to 1.
    """
    layers, heads = attribution.heads.shape[1:]
    table = head_columns(layers, heads).assign(kind="head")
    mlps = {"component": [mlp_name(n) for n in range(layers)], "layer": range(layers)}
    other = pd.DataFrame({"component": ["embed", "bias"], "layer": -1})
    table = pd.concat(
        [
            table,
            pd.DataFrame(mlps).assign(head=-1, kind="mlp"),
            other.assign(head=-1, kind="other"),
        ],
        ignore_index=True,
    )[["component", "kind", "layer", "head"]]
    parts = [attribution.heads.flatten(1), attribution.mlps]
    parts += [attribution.embedding[:, None], attribution.biases[:, None]]
    values = torch.cat(parts, dim=1).T.double().cpu().numpy()
    options = {"seed": seed, "confidence": confidence, "replicates": replicates}
    logits = mean_rows(values, **options)
    share = effect_rows(values, attribution.total.double().cpu().numpy(), **options)
    table["prompts"] = logits["prompts"]
    table[["logits", "logits_low", "logits_high"]] = logits[["mean", "low", "high"]]
    table[["share", "share_low", "share_high"]] = share[["effect", "low", "high"]]
    return table.assign(p_fdr=share["p_fdr"])


def _reader(model: Transformer, x: Tensor, direction: Tensor) -> Tensor:
    """Return the gradient ``[N, d]`` of the logit difference by the final residual ``x``, the norm's scale frozen."""
    config, scaled = model.config, direction * model.weights.final_norm
    if config.architecture == "gpt2":
        spread = (x.var(-1, unbiased=False, keepdim=True) + config.norm_eps).sqrt()
        return (scaled - scaled.mean(-1, keepdim=True)) / spread
    return scaled / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
