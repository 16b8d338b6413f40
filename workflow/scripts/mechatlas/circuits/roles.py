"""Role labels of heads, from measurements alone.

A head may have several roles or none. The measurements: direct logit attribution, attention from role to role in the
task's prompts, attention on repeated random tokens, OV copying and succession, and the effect of patching. A label says
that measurements are above stated thresholds; it is never looked up in a published table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.attention import repeated_token_scores, role_attention
from mechatlas.circuits.components import head_name
from mechatlas.circuits.direct import direct_attribution
from mechatlas.circuits.ov import hit_share, ov_ranks, token_residuals
from mechatlas.models.transformer import Transformer


@dataclass(frozen=True)
class RoleThresholds:
    """What a measurement has to reach for a label.

    Attributes
    ----------
    attribution : float
        Share of the logit difference that a mover writes (negative movers: its negative).
    attention : float
        Mean attention weight, in prompts and on repeated tokens.
    copying, succession : float
        Share of tokens whose own or next token is among the most promoted five.
    effect : float
        Absolute patching effect of heads that move information without writing it themselves.
    """

    attribution: float = 0.05
    attention: float = 0.3
    copying: float = 0.5
    succession: float = 0.3
    effect: float = 0.05


def measure_roles(
    model: Transformer,
    tokens: Tensor,
    answers: Tensor,
    wrong: Tensor,
    roles: Mapping[str, Tensor],
    *,
    seed: int,
    bos: int | None,
    members: Tensor | None = None,
    effects: np.ndarray | None = None,
    best: int = 5,
) -> pd.DataFrame:
    """Measure every head.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
        Clean prompts.
    answers, wrong : int64 Tensor [N]
    roles : mapping of str to int64 Tensor [N]
        Positions, -1 where absent; ``end`` is the last token.
    seed : int
        Base seed of the random sequences.
    bos : int or None
    members : int64 Tensor [M], optional
        A sequence (such as the months) in order; succession is measured on it.
    effects : float array [L, H], optional
        Patching effects of head outputs.
    best : int
        How many promoted tokens count as hits.

    Returns
    -------
    DataFrame
        One row per head: ``component``, ``layer``, ``head``, ``attribution`` (share of the mean logit difference),
        ``attention_{query}_{key}`` for roles, ``previous_token``, ``duplicate_token``, ``induction``, ``copying``,
        ``negative_copying``, ``succession`` (NaN without members) and ``effect`` (NaN if not given).
    """
    layers, heads = model.config.n_layers, model.config.n_heads
    direct = direct_attribution(model, tokens, answers, wrong)
    columns: dict[str, Tensor | np.ndarray] = {
        "attribution": direct.heads.mean(0) / direct.total.mean(),
        **{
            f"attention_{q}_{k}": a.nanmean(0)
            for (q, k), a in role_attention(model, tokens, roles).items()
            if q != k
        },
        **repeated_token_scores(model, seed=seed, bos=bos),
        **_ov_scores(model, tokens, roles, members, best),
        "effect": np.full((layers, heads), np.nan) if effects is None else effects,
    }
    layer, head = (x.ravel() for x in np.indices((layers, heads)))
    table = pd.DataFrame({"layer": layer, "head": head})
    table.insert(0, "component", [head_name(a, b) for a, b in zip(layer, head, strict=True)])
    for name, values in columns.items():
        values = values.double().cpu().numpy() if isinstance(values, Tensor) else values
        if not name.startswith("attention_") or np.isfinite(values).any():
            table[name] = values.reshape(-1)
    return table


def label_roles(
    table: pd.DataFrame,
    *,
    answer_role: str | None,
    repeat_role: str | None,
    thresholds: RoleThresholds,
) -> pd.Series:
    """Label heads by their measurements.

    Parameters
    ----------
    table : DataFrame
        From `measure_roles`.
    answer_role : str or None
        Role whose token is the answer (``io``), for name movers; None if the answer is not in the prompt.
    repeat_role : str or None
        Role whose token occurs a second time (``s2``): heads that look there from the end, matter, and write little
        into the logits inhibit the repeated name.
    thresholds : RoleThresholds

    Returns
    -------
    Series of tuple of str
        In the order: ``mover``, ``negative mover``, ``inhibition``, ``reader`` (looks from the end at some role and
        matters), ``duplicate token``, ``previous token``, ``induction``, ``successor``.
    """
    t, share = thresholds, table["attribution"]
    looks = lambda role: _column(table, f"attention_end_{role}") >= t.attention  # noqa: E731
    answer, repeat = looks(answer_role), looks(repeat_role)
    matters = table["effect"].abs() >= t.effect
    rules = {
        "mover": (share >= t.attribution) & answer & (table["copying"] >= t.copying),
        "negative mover": (share <= -t.attribution)
        & answer
        & (table["negative_copying"] >= t.copying),
        "inhibition": repeat & (share.abs() < t.attribution) & matters,
        "reader": (table.filter(like="attention_end_") >= t.attention).any(axis=1) & matters,
        "duplicate token": table["duplicate_token"] >= t.attention,
        "previous token": table["previous_token"] >= t.attention,
        "induction": table["induction"] >= t.attention,
        "successor": (table["succession"] >= t.succession) & (share >= t.attribution),
    }
    found = pd.DataFrame(rules)
    return found.apply(lambda row: tuple(name for name in rules if row[name]), axis=1)


def _ov_scores(
    model: Transformer,
    tokens: Tensor,
    roles: Mapping[str, Tensor],
    members: Tensor | None,
    best: int,
) -> dict[str, Tensor]:
    """Return copying, negative copying (of the tokens at all roles but ``end``) and succession, ``[L, H]``."""
    at = torch.stack([torch.as_tensor(p) for name, p in roles.items() if name != "end"], dim=1)
    x = token_residuals(model, tokens, at.clamp(min=0))[at >= 0]
    own = tokens.take_along_dim(at.clamp(min=0), dim=1)[at >= 0].to(model.device)
    own, index = _first_of_each(own)
    x = x[index]
    out = {
        "copying": hit_share(ov_ranks(model, x, own[:, None]), best)[..., 0],
        "negative_copying": hit_share(ov_ranks(model, x, own[:, None], sign=-1), best)[..., 0],
    }
    follows = (
        {} if members is None else dict(zip(members.tolist(), members.tolist()[1:], strict=False))
    )
    known = torch.tensor([token in follows for token in own.tolist()], dtype=torch.bool)
    if not known.any():
        shape = model.config.n_layers, model.config.n_heads
        return {**out, "succession": torch.full(shape, torch.nan)}
    targets = torch.tensor([[follows[token]] for token in own[known].tolist()], device=x.device)
    return {**out, "succession": hit_share(ov_ranks(model, x[known], targets), best)[..., 0]}


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different values and where each comes first."""
    unique, inverse = values.unique(return_inverse=True)
    order = torch.arange(len(values) - 1, -1, -1, device=values.device)
    index = torch.empty_like(unique).scatter_(0, inverse.flip(0), order)
    return unique, index


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name] if name in table else pd.Series(np.nan, index=table.index)
