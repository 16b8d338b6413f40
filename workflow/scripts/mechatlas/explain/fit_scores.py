"""Fitting the learned form (`Scores`) to attention patterns, all heads of a layer at once.

The tables minimise the mean cross-entropy between true and predicted attention rows of the train windows plus an L2
penalty that keeps rarely seen entries near zero. But for the token factors the problem is convex. Gradients are written
out: with G = softmax(scores) - target, the gradient of every table is a sum of G over the places that read its entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from mechatlas.explain.scores_form import (
    RELATIONS,
    C,
    Scores,
    class_marks,
    distance_buckets,
    position_octaves,
    relation_arrays,
)
from mechatlas.explain.vocabulary import TokenView

Tables = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ScoreFit:
    """Settings of the fit.

    Attributes
    ----------
    steps : int
        Adam steps; each reads ``batch_windows`` windows, in turn.
    learning_rate : float
        Peak of a one-cycle schedule.
    penalty : float
        Weight of the sum of squares of all entries.
    factors : int
        Rank of the token factors.
    batch_windows : int
    seed : int
        Of the first token factors.
    """

    steps: int = 60
    learning_rate: float = 0.3
    penalty: float = 1e-4
    factors: int = 8
    batch_windows: int = 16
    seed: int = 0


def fit_scores(
    view: TokenView, patterns: np.ndarray, settings: ScoreFit, device: str = "cpu"
) -> list[Scores]:
    """Fit one `Scores` form per head.

    Parameters
    ----------
    view : TokenView
        Train windows.
    patterns : float32 [W, H, T, T]
        Their attention patterns.
    settings : ScoreFit
    device : str
        Where to compute.

    Returns
    -------
    list of Scores
        One per head.
    """
    batches = [
        (
            _Data(TokenView(view.tokens[part], view.vocabulary), device),
            _target(patterns[part], device),
        )
        for part in _parts(len(view.tokens), settings.batch_windows)
    ]
    tables = _initial_tables(patterns.shape[1], len(view.vocabulary), batches[0][0], settings)
    adam = _Adam(tables)
    for step in range(settings.steps):
        grads = gradients(tables, *batches[step % len(batches)], settings.penalty)
        adam.step(grads, settings.learning_rate * one_cycle(step, settings.steps))
    return _forms(tables, view)


def one_cycle(step: int, steps: int, warmup: float = 0.15) -> float:
    """Share of the peak learning rate: up in a straight line for the first 15 % of steps, then down a cosine."""
    peak = max(1, round(warmup * steps))
    if step < peak:
        return (step + 1) / peak
    return 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, steps - peak)))


class _Adam:
    """Adam (Kingma and Ba 2015) on tables. Importing torch.optim costs three seconds, more than a layer's fit."""

    def __init__(self, tables: Tables, rates: tuple[float, float] = (0.9, 0.98)) -> None:
        self.tables, self.rates, self.count = tables, rates, 0
        self.first = {name: torch.zeros_like(table) for name, table in tables.items()}
        self.second = {name: torch.zeros_like(table) for name, table in tables.items()}

    def step(self, grads: Tables, rate: float) -> None:
        """Move the tables against their gradients."""
        self.count += 1
        a, b = self.rates
        scale = rate / (1 - a**self.count)
        for name, grad in grads.items():
            first = self.first[name].mul_(a).add_(grad, alpha=1 - a)
            second = self.second[name].mul_(b).addcmul_(grad, grad, value=1 - b)
            spread = (second / (1 - b**self.count)).sqrt_().add_(1e-8)
            self.tables[name].addcdiv_(first, spread, value=-scale)


def _parts(windows: int, size: int) -> list[slice]:
    """Cut windows into batches of nearly equal size, none larger than ``size``."""
    count = -(-windows // size)
    edges = np.linspace(0, windows, count + 1).round().astype(int)
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _target(patterns: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(patterns.transpose(1, 0, 2, 3))).to(device)


class _Data:
    """What the scores read besides the tables; shared by all heads. Queries and keys run over all T positions."""

    def __init__(self, view: TokenView, device: str) -> None:
        windows, length = view.shape
        gap = np.subtract.outer(np.arange(length), np.arange(length))
        buckets, octaves = distance_buckets(length), position_octaves(length)
        hidden = np.where(gap < 0, -np.inf, 0).astype(np.float32)
        self.tokens = torch.from_numpy(view.tokens).to(device)
        self.marks = torch.from_numpy(class_marks(view)).to(device)
        self.relations = torch.from_numpy(relation_arrays(view)).flatten(1).to(device)
        self.distance_shape = (int(octaves.max()) + 1, int(buckets.max()) + 1)
        place = octaves[:, None] * self.distance_shape[1] + buckets[np.abs(gap)]
        self.places = torch.from_numpy(place).to(device)
        self.hidden = torch.from_numpy(hidden).to(device)
        self.rows = windows * (length - 1)


def _initial_tables(heads: int, size: int, data: _Data, settings: ScoreFit) -> Tables:
    shapes = {
        "class_pair": (2 * C, 2 * C),
        "sink_class": (2 * C,),
        "sink_token": (size,),
        "key_token": (size,),
        "token_before_key": (size,),
        "distance": data.distance_shape,
        "relations": (len(RELATIONS),),
        "query_factors": (size, settings.factors),
        "key_factors": (size, settings.factors),
    }
    generator = torch.Generator().manual_seed(settings.seed % 2**63)
    tables = {}
    for name, shape in shapes.items():
        values = torch.zeros(heads, *shape)
        if name.endswith("factors"):
            # The product of two zero tables has no gradient, so they start small and random.
            values = 0.1 * torch.randn(heads, *shape, generator=generator)
        tables[name] = values.to(data.tokens.device)
    return tables


def predicted_rows(tables: Tables, data: _Data) -> torch.Tensor:
    """Attention rows that the tables predict: float32 [H, W, T, T]."""
    heads = len(tables["relations"])
    windows, length = data.tokens.shape
    queries = torch.einsum("wqc,hcd->hwqd", data.marks, tables["class_pair"])
    queries = torch.cat([queries, tables["query_factors"][:, data.tokens]], dim=-1)
    keys = torch.cat(
        [data.marks.expand(heads, -1, -1, -1), tables["key_factors"][:, data.tokens]], dim=-1
    )
    scores = (tables["relations"] @ data.relations).view(heads * windows, length, length)
    scores.baddbmm_(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
    scores = scores.view(heads, windows, length, length)
    key = tables["key_token"][:, data.tokens]
    key[:, :, 1:] += tables["token_before_key"][:, data.tokens[:, :-1]]
    scores += key[:, :, None, :]
    scores += (tables["distance"].flatten(1)[:, data.places] + data.hidden)[:, None]
    sink = torch.einsum("wqc,hc->hwq", data.marks, tables["sink_class"])
    scores[..., 0] = sink + tables["sink_token"][:, data.tokens]
    return torch.softmax(scores, dim=-1)


def gradients(tables: Tables, data: _Data, target: torch.Tensor, penalty: float) -> Tables:
    """Return the gradient of the objective for every table.

    The objective is the sum over heads of the mean over rows of the cross-entropy (query 0 left out), plus ``penalty``
    times the sum of squares of all entries.
    """
    error = predicted_rows(tables, data)
    error -= target
    error[:, :, 0] = 0
    error /= data.rows
    heads, windows, length, _ = error.shape
    sink = error[..., 0].clone()
    error[..., 0] = 0
    grads = {name: torch.zeros_like(table) for name, table in tables.items()}
    grads["relations"] = error.view(heads, -1) @ data.relations.T
    grads["sink_class"] = torch.einsum("hwq,wqc->hc", sink, data.marks)
    _scatter(grads["sink_token"], data.tokens, sink)
    key = error.sum(2)
    _scatter(grads["key_token"], data.tokens, key)
    _scatter(grads["token_before_key"], data.tokens[:, :-1], key[:, :, 1:])
    grads["distance"].flatten(1).index_add_(1, data.places.flatten(), error.sum(1).flatten(1))
    keys = torch.cat(
        [data.marks.expand(heads, -1, -1, -1), tables["key_factors"][:, data.tokens]], dim=-1
    )
    read = error.flatten(0, 1) @ keys.flatten(0, 1)
    read = read.view(heads, windows, length, -1)
    grads["class_pair"] = torch.einsum("wqc,hwqd->hcd", data.marks, read[..., : 2 * C])
    _scatter(grads["query_factors"], data.tokens, read[..., 2 * C :])
    written = error.flatten(0, 1).transpose(1, 2) @ tables["query_factors"][:, data.tokens].flatten(
        0, 1
    )
    _scatter(grads["key_factors"], data.tokens, written.view(heads, windows, length, -1))
    for name, table in tables.items():
        grads[name].add_(table, alpha=2 * penalty)
    return grads


def _scatter(table: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor) -> None:
    """Add values [H, W, T, ...] to the entries of their tokens in a table [H, V, ...]."""
    table.index_add_(1, tokens.flatten(), values.flatten(1, 2))


def _forms(tables: Tables, view: TokenView) -> list[Scores]:
    """Round the tables and drop entries that are practically zero or belong to tokens never seen."""
    arrays = {name: table.cpu().numpy() for name, table in tables.items()}
    seen = np.unique(view.tokens)
    return [
        Scores(
            sink_class=_rounded(arrays["sink_class"][head]),
            sink_token=_sparse(arrays["sink_token"][head]),
            class_pair=tuple(
                (int(a), int(b), round(float(arrays["class_pair"][head, a, b]), 3))
                for a, b in np.argwhere(np.abs(arrays["class_pair"][head]) >= 0.02)
            ),
            key_token=_sparse(arrays["key_token"][head]),
            token_before_key=_sparse(arrays["token_before_key"][head]),
            query_factors=_factors(arrays["query_factors"][head], seen),
            key_factors=_factors(arrays["key_factors"][head], seen),
            distance=tuple(_rounded(row) for row in arrays["distance"][head]),
            relations=dict(zip(RELATIONS, _rounded(arrays["relations"][head]), strict=True)),
        )
        for head in range(len(arrays["relations"]))
    ]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.astype(np.float64).round(3).tolist())


def _sparse(values: np.ndarray) -> tuple[tuple[int, float], ...]:
    kept = np.flatnonzero(np.abs(values) >= 0.02)
    return tuple(zip(kept.tolist(), _rounded(values[kept]), strict=True))


def _factors(values: np.ndarray, seen: np.ndarray) -> tuple[tuple[int, tuple[float, ...]], ...]:
    loads = values[seen].astype(np.float64).round(2).tolist()
    return tuple(zip(seen.tolist(), map(tuple, loads), strict=True))
