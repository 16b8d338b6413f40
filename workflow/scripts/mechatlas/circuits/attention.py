"""Where heads look: attention between token roles, and on repeated random tokens.

On a random sequence that is repeated there is nothing to know but repetition, so attention there shows what a head does
by itself: to the token before (previous token), to the same token earlier (duplicate token), to the token after that
one (induction) (Olsson et al. 2022, arXiv 2209.11895; Wang et al. 2022, arXiv 2211.00593, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mechatlas.io import rng_for
from mechatlas.models.transformer import Transformer

REPEATED = ("previous_token", "duplicate_token", "induction")


@torch.inference_mode()
def role_attention(
    model: Transformer, tokens: Tensor, roles: Mapping[str, Tensor], *, batch: int = 64
) -> dict[tuple[str, str], Tensor]:
    """Return attention from role to role.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
    roles : mapping of str to int64 Tensor [N]
        Positions, -1 where absent.
    batch : int
        Prompts per forward pass.

    Returns
    -------
    dict
        (query role, key role) to ``[N, L, H]``; NaN where a role is absent or the key lies after the query.
    """
    names = [name for name in roles if (torch.as_tensor(roles[name]) >= 0).any()]
    at = torch.stack([torch.as_tensor(roles[name]) for name in names], dim=1).to(model.device)
    parts = []
    for rows in torch.arange(len(tokens)).split(batch):
        where, seen = at[rows], []

        def keep(value: Tensor, layer: int, where=where, seen=seen) -> None:
            queries = value.take_along_dim(where.clamp(min=0)[:, None, :, None], dim=2)
            seen.append(queries.take_along_dim(where.clamp(min=0)[:, None, None, :], dim=3))

        model.forward(tokens[rows].to(model.device), {"pattern": keep}, logits=False)
        parts.append(torch.stack(seen, dim=1))
    attention = torch.cat(parts)
    valid = (at[:, :, None] >= at[:, None, :]) & (at >= 0)[:, :, None] & (at >= 0)[:, None, :]
    attention = attention.masked_fill(~valid[:, None, None], torch.nan)
    return {(q, k): attention[..., i, j] for i, q in enumerate(names) for j, k in enumerate(names)}


@torch.inference_mode()
def repeated_token_scores(
    model: Transformer,
    *,
    seed: int,
    bos: int | None,
    length: int = 50,
    count: int = 16,
) -> dict[str, Tensor]:
    """Measure attention on ``count`` random sequences of ``length`` different tokens that appear twice.

    Parameters
    ----------
    model : Transformer
    seed : int
        Base seed of the sequences.
    bos : int or None
        Put first.
    length, count : int
        ``length`` is shortened to what the model's context and vocabulary allow.

    Returns
    -------
    dict
        Each of `REPEATED` to ``[L, H]``, mean attention from every token of the second copy.
    """
    lead = bos is not None
    length = min(length, (model.config.n_ctx - lead) // 2, model.config.vocab_size - 1)
    rng = rng_for(seed, "repeated tokens")
    choices = np.array([t for t in range(model.config.vocab_size) if t != bos])
    drawn = np.stack([rng.choice(choices, length, replace=False) for _ in range(count)])
    first = np.full((count, 1), bos) if lead else np.empty((count, 0), dtype=np.int64)
    tokens = torch.from_numpy(np.concatenate([first, drawn, drawn], axis=1)).to(model.device)
    query = torch.arange(length, 2 * length) + lead
    keys = {"previous_token": query - 1, "duplicate_token": query - length}
    keys["induction"] = query - length + 1
    scores = {name: [] for name in REPEATED}

    def keep(value: Tensor, layer: int) -> None:
        for name, key in keys.items():
            scores[name].append(value[:, :, query, key].mean((0, 2)))

    model.forward(tokens, {"pattern": keep}, logits=False)
    return {name: torch.stack(values) for name, values in scores.items()}
