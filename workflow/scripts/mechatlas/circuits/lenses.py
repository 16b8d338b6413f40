"""All lenses on one task: what the model shows of it without any change to its activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.attention import (
    attention_table,
    mean_patterns,
    one_template,
    pattern_rows,
    position_names,
    repeated_pairs,
    repeated_token_attention,
    role_attention,
    uniform_attention,
)
from mechatlas.circuits.averages import head_columns
from mechatlas.circuits.direct import attribution_table, direct_attribution
from mechatlas.circuits.effects import REPLICATES
from mechatlas.circuits.lens import (
    lens_table,
    lens_targets,
    next_member_test,
    read_lens,
    relative_members,
)
from mechatlas.circuits.members import (
    following,
    matrix_rows,
    mean_residuals,
    ov_member_table,
    ov_table,
    qk_member_table,
)
from mechatlas.circuits.ov import ov_matrix
from mechatlas.circuits.qk import match_table, position_attention, role_matches, token_matches
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.collect import Task
from mechatlas.tasks.pairs import PairBatch
from mechatlas.tasks.sequence_pairs import SequenceTask

ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
)  # fmt: skip
OFFSETS = (-4, -3, -2, -1, 1, 2)  # distractors of a sequence, by distance from the answer
MOST_WORDS = 48  # different words of a task without a sequence whose OV and QK are measured


@dataclass(frozen=True)
class MemberOrder:
    """The sequence that a task continues.

    Attributes
    ----------
    tokens : int64 Tensor [M]
        Its members in order.
    step : int
        Distance from a shown member to the next one.
    cyclic : bool
        Whether the first member follows the last one.
    ordinals : int64 Tensor [M]
        ``first``, ``second`` ... for the members, -1 where there is none of one token.
    """

    tokens: Tensor
    step: int
    cyclic: bool
    ordinals: Tensor


def member_order(task: Task, builder: PromptBuilder) -> MemberOrder | None:
    """Return the sequence of a task, None if it has none."""
    if not isinstance(task, SequenceTask):
        return None
    words = [builder.ids(f" {word}")[-1] for word in task.words]
    ordinals = [builder.ids(f" {word}") for word in ORDINALS[: len(words)]]
    ids = [found[0] if len(found) == 1 else -1 for found in ordinals]
    ids += [-1] * (len(words) - len(ids))
    return MemberOrder(torch.tensor(words), task.step, task.cyclic, torch.tensor(ids))


@dataclass(frozen=True)
class LensSettings:
    """Settings shared by all lenses.

    Attributes
    ----------
    seed : int
    confidence : float
        Of all intervals.
    replicates : int
        Bootstrap replicates.
    batch : int
        Prompts per forward pass.
    best : int
        How many most promoted tokens count as hits of OV scores.
    """

    seed: int
    confidence: float = 0.95
    replicates: int = REPLICATES
    batch: int = 64
    best: int = 5

    @property
    def intervals(self) -> dict[str, float | int]:
        """Arguments of every function that averages."""
        return {
            "seed": self.seed,
            "confidence": self.confidence,
            "replicates": self.replicates,
        }


def measure_lenses(
    model: Transformer,
    batch: PairBatch,
    decode: Callable[[int], str],
    settings: LensSettings,
    *,
    bos: int,
    order: MemberOrder | None = None,
) -> dict[str, pd.DataFrame]:
    """Look at the clean prompts of a task through every lens.

    Parameters
    ----------
    model : Transformer
    batch : PairBatch
    decode : callable
        Token id to its text.
    settings : LensSettings
    bos : int
        Put before random sequences if the prompts begin with it.
    order : MemberOrder, optional

    Returns
    -------
    dict
        Name to table, all of them for every task (some without rows where a task has no sequence): ``logit_lens``,
        ``transitions``, ``direct``, ``attention``, ``patterns``, ``positions``, ``qk``, ``qk_members``, ``ov``,
        ``ov_members``, ``matrices``.
    """
    tokens = torch.from_numpy(batch.clean)
    answers, wrong = torch.from_numpy(batch.answers), torch.from_numpy(batch.wrong)
    roles = {name: torch.from_numpy(at) for name, at in batch.roles.items()}
    start = bos if batch.bos else None
    direct = direct_attribution(model, tokens, answers, wrong)
    return {
        **logit_lens(model, tokens, answers, wrong, roles, order, settings),
        "direct": attribution_table(direct, **settings.intervals),
        **attention_lens(model, tokens, roles, decode, settings, bos=start),
        "qk": match_table(
            role_matches(model, tokens, roles, bos=batch.bos, batch=settings.batch),
            **settings.intervals,
        ),
        **member_lens(model, tokens, roles, order, decode, settings, bos=start),
    }


def logit_lens(
    model: Transformer,
    tokens: Tensor,
    answers: Tensor,
    wrong: Tensor,
    roles: dict[str, Tensor],
    order: MemberOrder | None,
    settings: LensSettings,
) -> dict[str, pd.DataFrame]:
    """Return ``logit_lens`` (``norm``: ``final`` after the final norm, ``raw`` without) and ``transitions``."""
    if order is not None:
        others = relative_members(
            answers, order.tokens, [n * order.step for n in OFFSETS], cyclic=order.cyclic
        )
    else:
        others = {
            name: torch.where(at >= 0, tokens.gather(1, at.clamp(min=0)[:, None])[:, 0], -1)
            for name, at in roles.items()
            if name != "end"
        }
    names, targets = lens_targets(answers, wrong, others)
    points, tables = ("resid_mid", "resid_post"), []
    for norm, words in ((True, "final"), (False, "raw")):
        reading = read_lens(model, tokens, targets, points=points, norm=norm, batch=settings.batch)
        if norm:
            members = None if order is None else order.tokens[:: 1 if order.step > 0 else -1]
            transitions = next_member_test(
                reading, answers, wrong, members, confidence=settings.confidence
            )
        table = lens_table(reading, names, **settings.intervals)
        table.insert(2, "norm", words)
        tables.append(table)
    if order is None:
        transitions = transitions.head(0)
    return {"logit_lens": pd.concat(tables, ignore_index=True), "transitions": transitions}


def attention_lens(
    model: Transformer,
    tokens: Tensor,
    roles: dict[str, Tensor],
    decode: Callable[[int], str],
    settings: LensSettings,
    *,
    bos: int | None,
) -> dict[str, pd.DataFrame]:
    """Return ``attention`` (by role, and on repeated random tokens), ``patterns`` of one template and ``positions``."""
    attention = role_attention(model, tokens, roles, batch=settings.batch)
    attention |= repeated_pairs(repeated_token_attention(model, seed=settings.seed, bos=bos))
    chance = uniform_attention(model, roles, bos)
    rows = one_template(roles)
    same = {name: at[rows] for name, at in roles.items()}
    names = position_names(tokens[rows], same, decode)
    patterns = mean_patterns(model, tokens[rows], batch=settings.batch)
    return {
        "attention": attention_table(attention, chance, **settings.intervals),
        "patterns": pattern_rows(patterns, names).assign(prompts=int(rows.sum())),
        "positions": _positions(model, settings.seed, bos),
    }


def member_lens(
    model: Transformer,
    tokens: Tensor,
    roles: dict[str, Tensor],
    order: MemberOrder | None,
    decode: Callable[[int], str],
    settings: LensSettings,
    *,
    bos: int | None,
) -> dict[str, pd.DataFrame]:
    """Return ``ov``, ``ov_members``, ``qk_members`` and ``matrices`` of the words at the roles (the members)."""
    at = torch.stack([a for name, a in roles.items() if name != "end"], dim=1)
    own, x = mean_residuals(model, tokens, at)
    own, x = _ordered(tokens, at, own, x, order)
    others = _other_residuals(model, tokens, own, bos)
    step = 1 if order is None else order.step
    targets = {"copy": own} if order is None else _targets(own, order)
    ov = [ov_table(model, x, targets, best=settings.best, sign=s, confidence=settings.confidence)
          for s in (1, -1)]  # fmt: skip
    words = [decode(int(token)) for token in own]
    matrices = matrix_rows(ov_matrix(model, x, own), words, words, "ov")
    matrices["qk"] = matrix_rows(token_matches(model, x, x), words, words, "qk")["qk"]
    tables = {
        "ov": pd.concat(ov, ignore_index=True),
        "ov_members": ov_member_table(model, own, x, step=step, **settings.intervals),
        "qk_members": qk_member_table(model, x, others, step=step, **settings.intervals),
        "matrices": matrices,
    }
    if order is None:
        tables["matrices"] = matrices.head(0)
        for name, part in (("ov_members", ("next",)), ("qk_members", ("previous", "next"))):
            tables[name] = tables[name].drop(
                columns=[c for c in tables[name] if c.startswith(part)]
            )
    return tables


def _targets(own: Tensor, order: MemberOrder) -> dict[str, Tensor]:
    after = following(own, order.tokens, order.step, cyclic=order.cyclic)
    ordinal = dict(zip(order.tokens.tolist(), order.ordinals.tolist(), strict=True))
    of_next = [ordinal.get(token, -1) for token in after.tolist()]
    return {"copy": own, "next": after, "ordinal": torch.tensor(of_next, device=own.device)}


def _ordered(
    tokens: Tensor, at: Tensor, own: Tensor, x: Tensor, order: MemberOrder | None
) -> tuple[Tensor, Tensor]:
    """Bring words into the order of the sequence, and leave out others; without one keep the most frequent."""
    found = own.tolist()
    if order is None:
        seen = tokens.take_along_dim(at.clamp(min=0), dim=1)[at >= 0]
        counts = torch.tensor([int((seen == token).sum()) for token in found])
        chosen = counts.argsort(descending=True, stable=True)[:MOST_WORDS].sort().values
    else:
        chosen = torch.tensor([found.index(t) for t in order.tokens.tolist() if t in found])
    chosen = chosen.to(own.device)
    return own[chosen], x[chosen]


def _other_residuals(model: Transformer, tokens: Tensor, own: Tensor, bos: int | None) -> Tensor:
    """Return the residuals of the most frequent other words of the prompts."""
    skip = torch.cat([own.cpu(), torch.tensor([] if bos is None else [bos], dtype=torch.int64)])
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    at = torch.where(torch.isin(tokens, skip), -1, places)
    return _ordered(tokens, at, *mean_residuals(model, tokens, at), None)[1]


def _positions(model: Transformer, seed: int, bos: int | None) -> pd.DataFrame:
    values = position_attention(model, seed=seed, bos=bos)
    layers, heads, offsets = values.shape
    table = head_columns(layers, heads)
    table = table.loc[table.index.repeat(offsets)].reset_index(drop=True)
    table["offset"] = list(range(offsets)) * (layers * heads)
    return table.assign(attention=values.double().cpu().numpy().ravel())
