"""What heads write: direct attribution and OV scores of a task's prompts as tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.components import head_name, mlp_name
from mechatlas.circuits.direct import direct_attribution
from mechatlas.circuits.effects import effect_rows
from mechatlas.circuits.ov import hit_share, ov_matrix, ov_ranks, token_residuals
from mechatlas.models.transformer import Transformer

BEST = 5
OV_COLUMNS = ("copy", "next")


def direct_table(
    model: Transformer,
    tokens: Tensor,
    answers: Tensor,
    wrong: Tensor,
    *,
    seed: int,
    confidence: float,
    replicates: int,
) -> pd.DataFrame:
    """Return direct logit attribution of every head, MLP, the embedding and the biases, with intervals.

    Returns
    -------
    DataFrame
        ``component``, ``layer``, ``head`` (-1: none), ``logits`` with ``low`` and ``high``, ``share`` of the mean logit
        difference, ``p``, ``p_fdr``. The column ``logits`` sums to the mean logit difference.
    """
    found = direct_attribution(model, tokens, answers, wrong)
    layers, heads = model.config.n_layers, model.config.n_heads
    layer, head = (x.ravel() for x in np.indices((layers, heads)))
    names = [head_name(a, b) for a, b in zip(layer, head, strict=True)]
    names += [*map(mlp_name, range(layers)), "embed", "bias"]
    parts = torch.cat(
        [found.heads.flatten(1), found.mlps, found.embedding[:, None], found.biases[:, None]], dim=1
    )
    values = parts.double().cpu().numpy().T
    rows = effect_rows(
        values, np.ones(values.shape[1]), seed=seed, confidence=confidence, replicates=replicates
    )
    table = pd.DataFrame({"component": names})
    table["layer"] = [*layer, *range(layers), -1, -1]
    table["head"] = [*head, *[-1] * (layers + 2)]
    table["logits"], table["low"], table["high"] = rows["effect"], rows["low"], rows["high"]
    table["share"] = table["logits"] / float(found.total.double().mean())
    table[["p", "p_fdr"]] = rows[["p", "p_fdr"]]
    return table


def member_residuals(
    model: Transformer, tokens: Tensor, positions: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    """Return residuals after the first block of members, at the first place where each is shown.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
    positions : int64 Tensor [N, K]
        Where members may stand, -1 where there is none.
    members : int64 Tensor [M]

    Returns
    -------
    (Tensor [K', d], int64 Tensor [K'])
        And the indices of the K' members that are shown, in order.
    """
    shown = tokens.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -1)
    found = [(shown == member).nonzero() for member in members.tolist()]
    indices = [i for i, places in enumerate(found) if len(places)]
    rows = torch.stack([found[i][0] for i in indices])
    x = token_residuals(model, tokens[rows[:, 0]], positions[rows[:, 0], rows[:, 1], None])
    return x[:, 0], torch.tensor(indices)


def ov_table(model: Transformer, x: Tensor, indices: Tensor, members: Tensor) -> pd.DataFrame:
    """Return how often each head promotes an attended member itself, and the next one.

    Parameters
    ----------
    model : Transformer
    x : Tensor [K, d]
        Residuals of attended members.
    indices : int64 Tensor [K]
        Which members they are.
    members : int64 Tensor [M]

    Returns
    -------
    DataFrame
        One row per head: ``component``, ``layer``, ``head``, ``tokens`` (members with a next one), ``copy``, ``next``,
        ``negative_copy``, ``negative_next`` (of what the head writes against), ``chance``.
    """
    known = indices + 1 < len(members)
    x, own = x[known], indices[known]
    targets = torch.stack([members[own], members[own + 1]], dim=1)
    layers, heads = model.config.n_layers, model.config.n_heads
    layer, head = (i.ravel() for i in np.indices((layers, heads)))
    table = pd.DataFrame({"layer": layer, "head": head})
    table.insert(0, "component", [head_name(a, b) for a, b in zip(layer, head, strict=True)])
    table["tokens"] = len(own)
    for sign, prefix in ((1, ""), (-1, "negative_")):
        share = hit_share(ov_ranks(model, x, targets, sign=sign), BEST).cpu().numpy()
        for j, name in enumerate(OV_COLUMNS):
            table[prefix + name] = share[..., j].ravel()
    table["chance"] = BEST / model.config.vocab_size
    return table


def ov_matrix_table(
    model: Transformer, x: Tensor, indices: Tensor, members: Tensor, texts: list[str]
) -> pd.DataFrame:
    """Return the logit that every head gives to every member, by the member attended to, less the mean over members.

    Returns
    -------
    DataFrame
        ``layer``, ``head``, ``attended``, ``promoted`` (texts), ``logit``.
    """
    logits = ov_matrix(model, x, members.to(model.device))
    logits = (logits - logits.mean(-1, keepdim=True)).float().cpu().numpy()
    layer, head, attended, promoted = (i.ravel() for i in np.indices(logits.shape))
    names = np.array(texts, dtype=object)
    return pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "attended": names[indices.numpy()][attended],
            "promoted": names[promoted],
            "logit": logits.ravel(),
        }
    )
