"""The logit lens: what the model would say if it stopped after a layer.

The residual stream after each block goes through the final norm, once, and the unembedding (nostalgebraist 2020,
"interpreting GPT: the logit lens"). After the last block this is the model's output. Without the norm (``norm=False``)
the raw residual is unembedded, whose scale grows with the layers; only its order of tokens means something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.averages import mean_rows
from mechatlas.circuits.effects import REPLICATES
from mechatlas.models.transformer import LOGITS_PER_CHUNK, Transformer
from mechatlas.stats.shares import share_interval

EMBED = -1  # the layer of the embedding in tables


@dataclass(frozen=True)
class LensReading:
    """What the lens shows of N prompts at P points, S positions and K tokens of each prompt.

    Attributes
    ----------
    points : tuple of (str, int)
        Hook point and layer, in the order of the model; the embedding is ``("embed", -1)``.
    top : int64 Tensor [P, N, S]
        The most likely token.
    ranks : int64 Tensor [P, N, S, K]
        Number of tokens with a higher logit (0 is best), -1 for absent tokens.
    logits, log_probabilities : Tensor [P, N, S, K], at least float32
        NaN for absent tokens.
    """

    points: tuple[tuple[str, int], ...]
    top: Tensor
    ranks: Tensor
    logits: Tensor
    log_probabilities: Tensor


@torch.inference_mode()
def read_lens(
    model: Transformer,
    tokens: Tensor,
    targets: Tensor,
    *,
    positions: Tensor | None = None,
    points: Sequence[str] = ("resid_post",),
    norm: bool = True,
    batch: int = 64,
) -> LensReading:
    """Read prompts through the logit lens.

    Parameters
    ----------
    model : Transformer
    tokens : int64 Tensor [N, T]
    targets : int64 Tensor [N, K]
        Tokens whose rank and probability are wanted, -1 where there is none (`lens_targets`).
    positions : int64 Tensor [N, S], optional
        Where to read; only the last position by default. ``torch.arange(T).expand(N, T)`` reads everywhere.
    points : sequence of str
        ``resid_mid`` (after attention), ``resid_post`` (after the block); the embedding is always read.
    norm : bool
        Whether to apply the final norm.
    batch : int
        Prompts per forward pass. The vocabulary's logits exist for a bounded number of rows at a time.
    """
    count, length = tokens.shape
    at = torch.full((count, 1), length - 1) if positions is None else positions
    at, targets = at.to(model.device), targets.to(model.device)
    parts: list[dict[tuple[str, int], tuple[Tensor, ...]]] = []
    for rows in torch.arange(count, device=model.device).split(batch):
        seen: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        hooks = {
            point: _reader(model, point, at[rows], targets[rows], norm, seen)
            for point in ("embed", *points)
        }
        model.forward(tokens[rows.cpu()].to(model.device), hooks, logits=False)
        parts.append(seen)
    found = tuple(parts[0])
    joined = ([torch.cat([part[key][i] for part in parts]) for key in found] for i in range(4))
    return LensReading(found, *(torch.stack(values) for values in joined))


def lens_targets(
    answers: Tensor, wrong: Tensor, others: Mapping[str, Tensor] | None = None
) -> tuple[list[str], Tensor]:
    """Name the tokens that the lens looks for.

    Parameters
    ----------
    answers, wrong : int64 Tensor [N]
    others : mapping of str to int64 Tensor [N], optional
        Distractors, -1 where absent; one that is the answer, or the same as an earlier one, in all prompts is left out.

    Returns
    -------
    tuple
        K names, ``answer`` and ``wrong`` first, and int64 ``[N, K]``.
    """
    kept = {"answer": answers, "wrong": wrong}
    for name, values in (others or {}).items():
        if (values >= 0).any() and not any(torch.equal(values, known) for known in kept.values()):
            kept[name] = values
    return list(kept), torch.stack(list(kept.values()), dim=1)


def relative_members(
    answers: Tensor, members: Tensor, offsets: Sequence[int], *, cyclic: bool = False
) -> dict[str, Tensor]:
    """Return the members of a sequence by their distance from each prompt's answer.

    Parameters
    ----------
    answers : int64 Tensor [N]
    members : int64 Tensor [M]
        The sequence in order.
    offsets : sequence of int
        -1 is the member before the answer.
    cyclic : bool
        Whether the first member follows the last one.

    Returns
    -------
    dict
        ``answer-1``, ``answer+2`` ... to int64 ``[N]``, -1 where there is none.
    """
    place = _places(members, answers)
    out = {}
    for offset in offsets:
        index = place + offset
        inside = (place >= 0) & (torch.full_like(index, cyclic).bool() | _within(index, members))
        out[f"answer{offset:+d}"] = torch.where(inside, members[index % len(members)], -1)
    return out


def lens_table(
    reading: LensReading,
    names: Sequence[str],
    *,
    seed: int,
    positions: Sequence[str] = ("end",),
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average a reading over prompts.

    Parameters
    ----------
    reading : LensReading
    names : sequence of str
        Of the K tokens; the first is the answer.
    seed : int
        Base seed of the bootstrap over prompts.
    positions : sequence of str
        Names of the S positions.

    Returns
    -------
    DataFrame
        One row per point, position and token: ``point``, ``layer`` (-1: embedding), ``position``, ``token``,
        ``prompts`` (that have the token), ``rank`` (mean; 0 is best) with ``rank_low`` and ``rank_high``,
        ``median_rank``, ``probability`` (mean), ``top1`` (share of prompts whose most likely token it is; Wilson
        interval) and ``below_answer`` (mean logit of the answer minus that of the token), each with ``_low`` and
        ``_high``.
    """
    shape = reading.ranks.shape
    point, position, token = (x.ravel() for x in np.indices((shape[0], shape[2], shape[3])))
    table = pd.DataFrame(
        {
            "point": [reading.points[p][0] for p in point],
            "layer": [reading.points[p][1] for p in point],
            "position": np.array(positions, dtype=object)[position],
            "token": np.array(names, dtype=object)[token],
        }
    )
    ranks = _by_prompt(reading.ranks)
    ranks = np.where(ranks < 0, np.nan, ranks)
    measured = {
        "rank": ranks,
        "probability": np.exp(_by_prompt(reading.log_probabilities)),
        "below_answer": _by_prompt(reading.logits[..., :1] - reading.logits),
    }
    known = np.isfinite(ranks)
    table["prompts"] = known.sum(1)
    for name, values in measured.items():
        rows = mean_rows(values, seed=seed, confidence=confidence, replicates=replicates)
        table[[name, f"{name}_low", f"{name}_high"]] = rows[["mean", "low", "high"]]
    table.insert(table.columns.get_loc("probability"), "median_rank", _median(ranks))
    hits, of = ((ranks == 0) & known).sum(1), table["prompts"].to_numpy()
    table["top1"] = np.divide(hits, of, out=np.full(len(of), np.nan), where=of > 0)
    table["top1_low"], table["top1_high"] = share_interval(hits, of, confidence)
    return table


def next_member_test(
    reading: LensReading,
    answers: Tensor,
    before: Tensor,
    members: Tensor | None = None,
    *,
    position: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Count, block by block, how often the member before the answer is on top and gives way to the answer.

    Lan, Torr, Barez 2023 (arXiv 2311.04131), section 4.3, did so for one block of GPT-2 and counted every earlier
    member; their count is ``earlier``.

    Parameters
    ----------
    reading : LensReading
        With ``resid_post``.
    answers, before : int64 Tensor [N]
        The answer and the member exactly before it.
    members : int64 Tensor [M], optional
        The sequence in order; without it ``earlier`` is missing.
    position : int
        Index of the position to read.

    Returns
    -------
    DataFrame
        One row per block: ``layer``, ``prompts``; ``before`` and ``answer`` (prompts with that token on top before and
        after the block), ``exact`` (both), ``exact_share`` with ``exact_low`` and ``exact_high``; ``earlier`` (any
        earlier member before, the answer after) with its share and interval; ``for_good`` (the answer is on top from
        here to the last layer, and was not before) and ``for_good_exact`` (of those, the member before it gave way).
    """
    blocks = [i for i, (point, _) in enumerate(reading.points) if point != "resid_mid"]
    top = reading.top[blocks, :, position].cpu()
    answers, before = answers.cpu(), before.cpu()
    is_answer = top == answers
    lasts = is_answer.flip(0).cumprod(0).flip(0).bool()
    for_good = lasts[1:] & ~is_answer[:-1]
    exact = (top[:-1] == before) & is_answer[1:]
    count = len(answers)
    table = pd.DataFrame(
        {
            "layer": [reading.points[i][1] for i in blocks[1:]],
            "prompts": count,
            "before": (top[:-1] == before).sum(1).numpy(),
            "answer": is_answer[1:].sum(1).numpy(),
        }
    )
    found = {"exact": exact}
    if members is not None:
        members = members.cpu()
        place = _places(members, top[:-1])
        found["earlier"] = (place >= 0) & (place < _places(members, answers)) & is_answer[1:]
    for name, hits in found.items():
        table[name] = hits.sum(1).numpy()
        table[f"{name}_share"] = table[name] / count
        low, high = share_interval(table[name].to_numpy(), table["prompts"].to_numpy(), confidence)
        table[f"{name}_low"], table[f"{name}_high"] = low, high
    table["for_good"] = for_good.sum(1).numpy()
    table["for_good_exact"] = (for_good & exact).sum(1).numpy()
    return table


def _reader(
    model: Transformer,
    point: str,
    at: Tensor,
    targets: Tensor,
    norm: bool,
    seen: dict[tuple[str, int], tuple[Tensor, ...]],
):
    def read(value: Tensor, layer: int) -> None:
        x = value.take_along_dim(at[..., None], dim=1)
        if norm:
            x = model.norm(x, model.weights.final_norm, model.weights.final_norm_bias)
        wanted = targets[:, None].expand(-1, at.shape[1], -1)
        rows = _read_rows(model, x.flatten(0, 1), wanted.flatten(0, 1))
        seen[point, EMBED if point == "embed" else layer] = tuple(
            values.unflatten(0, at.shape) for values in rows
        )

    return read


def _read_rows(model: Transformer, x: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return top ``[R]``, ranks, logits and log-probabilities ``[R, K]`` of rows ``x [R, d]``."""
    size = max(1, LOGITS_PER_CHUNK // model.config.vocab_size)
    parts = []
    for part, wanted in zip(x.split(size), targets.split(size), strict=True):
        logits = model.unembed(part)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        absent = wanted < 0
        own = logits.gather(1, wanted.clamp(min=0))
        ranks = torch.stack([(logits > column[:, None]).sum(1) for column in own.unbind(1)], dim=1)
        log_p = own - logits.logsumexp(1, keepdim=True)
        parts.append(
            (
                logits.argmax(1),
                ranks.masked_fill(absent, -1),
                own.masked_fill(absent, torch.nan),
                log_p.masked_fill(absent, torch.nan),
            )
        )
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _places(members: Tensor, tokens: Tensor) -> Tensor:
    """Return the index of tokens among members, -1 for others."""
    same = tokens[..., None] == members
    return torch.where(same.any(-1), same.int().argmax(-1), -1)


def _within(index: Tensor, members: Tensor) -> Tensor:
    return (index >= 0) & (index < len(members))


def _by_prompt(values: Tensor) -> np.ndarray:
    """Turn ``[P, N, S, K]`` into float64 ``[P S K, N]``."""
    return values.permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy()


def _median(ranks: np.ndarray) -> np.ndarray:
    out = np.full(len(ranks), np.nan)
    some = np.isfinite(ranks).any(1)
    out[some] = np.nanmedian(ranks[some], axis=1)
    return out
