"""Where heads look: attention between token roles, and on repeated random tokens.

On a random sequence that is repeated there is nothing to know but repetition, so attention there shows what a head does
by itself: to the token before (previous token), to the same token earlier (duplicate token), to the token after that
one (induction) (Olsson et al. 2022, arXiv 2209.11895; Wang et al. 2022, arXiv 2211.00593, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.averages import head_columns, pair_means
from mechatlas.circuits.effects import REPLICATES
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


def repeated_token_scores(
    model: Transformer,
    *,
    seed: int,
    bos: int | None,
    length: int = 50,
    count: int = 16,
) -> dict[str, Tensor]:
    """Return `repeated_token_attention` averaged over sequences, ``[L, H]``."""
    options = {"seed": seed, "bos": bos, "length": length, "count": count}
    return {n: a.mean(0) for n, a in repeated_token_attention(model, **options).items()}


@torch.inference_mode()
def repeated_token_attention(
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
        Each of `REPEATED` to ``[count, L, H]``, mean attention from every token of the second copy.
    """
    query = _second_copy(model, bos, length)
    length = len(query)
    rng = rng_for(seed, "repeated tokens")
    choices = np.array([t for t in range(model.config.vocab_size) if t != bos])
    drawn = np.stack([rng.choice(choices, length, replace=False) for _ in range(count)])
    first = np.full((count, int(query[0]) - length), -1 if bos is None else bos)
    tokens = torch.from_numpy(np.concatenate([first, drawn, drawn], axis=1)).to(model.device)
    keys = {"previous_token": query - 1, "duplicate_token": query - length}
    keys["induction"] = query - length + 1
    scores = {name: [] for name in REPEATED}

    def keep(value: Tensor, layer: int) -> None:
        for name, key in keys.items():
            scores[name].append(value[:, :, query, key].mean(2))

    model.forward(tokens, {"pattern": keep}, logits=False)
    return {name: torch.stack(values, dim=1) for name, values in scores.items()}


def _second_copy(model: Transformer, bos: int | None, length: int) -> Tensor:
    """Return the positions of the second copy of repeated tokens, as many as context and vocabulary allow."""
    lead = bos is not None
    length = min(length, (model.config.n_ctx - lead) // 2, model.config.vocab_size - 1)
    return torch.arange(length, 2 * length, device=model.device) + lead


def attention_table(
    attention: Mapping[tuple[str, str], Tensor],
    chance: Mapping[str, float],
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average attention over prompts (or sequences).

    Parameters
    ----------
    attention : mapping of (str, str) to Tensor [N, L, H]
        From `role_attention`, NaN where a prompt lacks a role; `repeated_pairs` gives those on repeated tokens.
    chance : mapping of str to float
        Weight of each key if a query looked everywhere alike, by query role (`uniform_attention`).
    seed : int
        Base seed of the bootstrap over prompts.

    Returns
    -------
    DataFrame
        One row per head and pair of roles: ``component``, ``layer``, ``head``, ``query``, ``key``, ``prompts``,
        ``attention`` with ``low`` and ``high``, ``chance``. Pairs that no prompt has are left out.
    """
    table = pair_means(attention, seed=seed, confidence=confidence, replicates=replicates)
    table = table.drop(columns="p").rename(columns={"mean": "attention"})
    table["chance"] = table["query"].map(dict(chance))
    return table[table["prompts"] > 0].reset_index(drop=True)


def repeated_pairs(attention: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Name the queries of `repeated_token_attention`, for `attention_table`: (``repeated``, what it is)."""
    return {("repeated", name): values for name, values in attention.items()}


def uniform_attention(
    model: Transformer, roles: Mapping[str, Tensor], bos: int | None, length: int = 50
) -> dict[str, float]:
    """Return the mean of 1 / (query position + 1) by query role, and of the queries on ``repeated`` tokens."""
    out = {"repeated": float((1 / (_second_copy(model, bos, length) + 1)).mean())}
    for name, at in roles.items():
        known = torch.as_tensor(at)
        known = known[known >= 0]
        out[name] = float((1 / (known.double() + 1)).mean()) if len(known) else float("nan")
    return out


@torch.inference_mode()
def mean_patterns(model: Transformer, tokens: Tensor, *, batch: int = 64) -> Tensor:
    """Return the attention pattern of every head, averaged over prompts ``[N, T]``, ``[L, H, T, T]``."""
    config, length = model.config, tokens.shape[1]
    total = torch.zeros(
        (config.n_layers, config.n_heads, length, length), dtype=torch.float64, device=model.device
    )

    def add(value: Tensor, layer: int) -> None:
        total[layer] += value.sum(0)

    for part in tokens.to(model.device).split(batch):
        model.forward(part, {"pattern": add}, logits=False)
    return total / len(tokens)


def one_template(roles: Mapping[str, Tensor]) -> Tensor:
    """Return which prompts have the most frequent positions of all roles, bool ``[N]`` (the first of equals)."""
    layouts = torch.stack([torch.as_tensor(at) for at in roles.values()], dim=1)
    unique, inverse, counts = layouts.unique(dim=0, return_inverse=True, return_counts=True)
    return inverse == counts.argmax()


def position_names(
    tokens: Tensor, roles: Mapping[str, Tensor], decode: Callable[[int], str]
) -> list[str]:
    """Name the positions of prompts of one template: by their role, else by their token if it is always the same.

    Parameters
    ----------
    tokens : int64 Tensor [N, T]
    roles : mapping of str to int64 Tensor [N]
        The same in all prompts (`one_template`).
    decode : callable
        Token id to text.

    Returns
    -------
    list of str
        ``…`` where words differ.
    """
    by_place = {int(at[0]): name for name, at in roles.items() if int(at[0]) >= 0}
    fixed = (tokens == tokens[0]).all(0)
    return [
        by_place.get(t, decode(int(tokens[0, t])) if fixed[t] else "…")
        for t in range(tokens.shape[1])
    ]


def pattern_rows(patterns: Tensor, names: Sequence[str]) -> pd.DataFrame:
    """Return mean patterns ``[L, H, T, T]`` as one row per head, query and visible key.

    Returns
    -------
    DataFrame
        ``component``, ``layer``, ``head``, ``query``, ``key`` (positions), ``query_label``, ``key_label``,
        ``attention``.
    """
    layers, heads, length, _ = patterns.shape
    query, key = np.tril_indices(length)
    table = head_columns(layers, heads)
    table = table.loc[table.index.repeat(len(query))].reset_index(drop=True)
    labels = np.array(names, dtype=object)
    for name, at in {"query": query, "key": key}.items():
        table[name] = np.tile(at, layers * heads)
        table[f"{name}_label"] = np.tile(labels[at], layers * heads)
    seen = patterns.double().cpu().numpy()
    table["attention"] = seen.reshape(-1, length, length)[:, query, key].ravel()
    return table
