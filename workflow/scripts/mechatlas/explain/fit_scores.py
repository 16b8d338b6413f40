"""Fitting the learned form (`Scores`) to attention patterns, all heads of a layer at once.

The tables minimise the mean cross-entropy between true and predicted attention rows of the train windows plus an L2
penalty that keeps rarely seen entries near zero. But for the token factors the problem is convex. Gradients are written
out: with G = softmax(scores) - target, the gradient of every table is a sum of G over the places that read its entry.

What sets the time is the size of the scores, [windows, heads, queries, keys]. They are made for a block of queries at a
time, with the keys up to its last query only, so that little is computed above the diagonal and a block stays in the
processor's cache.
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
    relation_places,
)
from mechatlas.explain.vocabulary import TokenView

Tables = dict[str, torch.Tensor]
#: Queries whose scores are made at once.
BLOCK = 32


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
    # Tables have entries for the tokens of these windows only: those of others would stay zero.
    seen, codes = np.unique(view.tokens, return_inverse=True)
    codes = codes.reshape(view.shape)
    batches = [
        _Data(TokenView(view.tokens[part], view.vocabulary), codes[part], patterns[part], device)
        for part in _parts(len(view.tokens), settings.batch_windows)
    ]
    tables = _initial_tables(patterns.shape[1], len(seen), batches[0], settings)
    adam = _Adam(tables)
    for step in range(settings.steps):
        grads = gradients(tables, batches[step % len(batches)], settings.penalty)
        adam.step(grads, settings.learning_rate * one_cycle(step, settings.steps))
    return _forms(tables, seen)


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


@dataclass(frozen=True)
class _Block:
    """Queries ``start`` to ``stop`` (exclusive) and the keys before ``stop``.

    Attributes
    ----------
    target : float32 [W, H, q, k]
        True attention.
    places : int64 [H * n]
        Where relations hold among the flattened entries [W, H, q, k], head after head.
    relation : int64 [n]
        Which relation each of a head's places is about.
    """

    start: int
    stop: int
    target: torch.Tensor
    places: torch.Tensor
    relation: torch.Tensor

    @property
    def queries(self) -> slice:
        return slice(self.start, self.stop)


class _Data:
    """What the scores read besides the tables, and the true patterns, of a batch of windows.

    Parameters
    ----------
    view : TokenView
    codes : int64 [W, T]
        Place of every token in the token tables.
    patterns : float32 [W, H, T, T]
    device : str
    dtype : torch.dtype
    """

    def __init__(
        self,
        view: TokenView,
        codes: np.ndarray,
        patterns: np.ndarray,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        windows, length = view.shape
        gap = np.subtract.outer(np.arange(length), np.arange(length))
        buckets, octaves = distance_buckets(length), position_octaves(length)
        self.distance_shape = (int(octaves.max()) + 1, int(buckets.max()) + 1)
        place = octaves[:, None] * self.distance_shape[1] + buckets[np.abs(gap)]
        self.places = torch.from_numpy(place).to(device)
        self.tokens = torch.from_numpy(np.ascontiguousarray(codes)).to(device)
        self.marks = torch.from_numpy(class_marks(view)).to(device, dtype)
        self.rows = windows * (length - 1)
        self.heads = patterns.shape[1]
        relations = relation_places(view)
        hidden = np.where(gap < 0, -np.inf, 0)
        self.hidden = torch.from_numpy(hidden).to(device, dtype)
        self.blocks: list[_Block] = []
        # Query 0 is left out: its row is trivial.
        for start in range(1, length, BLOCK):
            stop = min(start + BLOCK, length)
            places, relation = _placed(relations, view.shape, self.heads, start, stop)
            target = np.ascontiguousarray(patterns[:, :, start:stop, :stop])
            self.blocks.append(
                _Block(
                    *(start, stop, torch.from_numpy(target).to(device, dtype)),
                    *(torch.from_numpy(places).to(device), torch.from_numpy(relation).to(device)),
                )
            )


def _placed(
    relations: list[np.ndarray], shape: tuple[int, int], heads: int, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``places`` and ``relation`` of a `_Block` from the places [W, T, T] where each relation holds."""
    window, query, key = np.unravel_index(np.concatenate(relations), (*shape, shape[1]))
    relation = np.repeat(np.arange(len(relations)), [len(places) for places in relations])
    inside = (query >= start) & (query < stop)
    window, query, key = window[inside], query[inside] - start, key[inside]
    rows = window * heads + np.arange(heads)[:, None]
    return ((rows * (stop - start) + query) * stop + key).ravel(), relation[inside]


def _initial_tables(heads: int, tokens: int, data: _Data, settings: ScoreFit) -> Tables:
    """Tables of all heads; where an entry belongs to a token, the tokens come first."""
    shapes = {
        "class_pair": (heads, 2 * C, 2 * C),
        "sink_class": (2 * C, heads),
        "sink_token": (tokens, heads),
        "key_token": (tokens, heads),
        "token_before_key": (tokens, heads),
        "distance": (heads, *data.distance_shape),
        "relations": (heads, len(RELATIONS)),
        "query_factors": (tokens, heads, settings.factors),
        "key_factors": (tokens, heads, settings.factors),
    }
    generator = torch.Generator().manual_seed(settings.seed % 2**63)
    tables = {}
    for name, shape in shapes.items():
        values = torch.zeros(shape)
        if name.endswith("factors"):
            # The product of two zero tables has no gradient, so they start small and random.
            values = 0.1 * torch.randn(shape, generator=generator)
        tables[name] = values.to(data.tokens.device)
    return tables


class _Read:
    """What the tables say about every position of a batch, heads before positions: [W, H, T, ...]."""

    def __init__(self, tables: Tables, data: _Data) -> None:
        pairs = tables["class_pair"].permute(1, 0, 2).flatten(1)
        self.classes = _by_head((data.marks @ pairs).unflatten(-1, (data.heads, -1)))
        self.queries = _by_head(_at(tables["query_factors"], data.tokens))
        self.keys = _by_head(_at(tables["key_factors"], data.tokens))
        key = _at(tables["key_token"], data.tokens)
        key[:, 1:] += _at(tables["token_before_key"], data.tokens[:, :-1])
        self.key = _by_head(key)
        sink = data.marks @ tables["sink_class"] + _at(tables["sink_token"], data.tokens)
        self.sink = _by_head(sink)
        # With -inf after the query.
        distance = tables["distance"].flatten(1).index_select(1, data.places.flatten())
        self.distance = distance.unflatten(1, data.places.shape) + data.hidden


def _at(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The entries of tokens [W, T]: [W, T, H, ...]."""
    return table.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)


def _by_head(values: torch.Tensor) -> torch.Tensor:
    """[W, T, H, ...] to [W, H, T, ...]."""
    return values.transpose(1, 2).contiguous()


def predicted_rows(tables: Tables, data: _Data, read: _Read, block: _Block) -> torch.Tensor:
    """Attention rows that the tables predict for the queries of a block: float32 [W, H, q, k]."""
    windows, heads = len(data.tokens), data.heads
    queries, stop = block.queries, block.stop
    scores = read.key[:, :, None, :stop] + read.distance[:, queries, :stop]
    classes = read.classes[:, :, queries].flatten(1, 2)
    scores.view(windows, -1, stop).baddbmm_(classes, data.marks[:, :stop].transpose(1, 2))
    factors = read.queries[:, :, queries].flatten(0, 1)
    keys = read.keys[:, :, :stop].flatten(0, 1)
    scores.view(windows * heads, -1, stop).baddbmm_(factors, keys.transpose(1, 2))
    scores.view(-1).index_add_(
        0, block.places, tables["relations"].index_select(1, block.relation).flatten()
    )
    scores[..., 0] = read.sink[:, :, queries]
    return torch.softmax(scores, dim=-1)


def gradients(tables: Tables, data: _Data, penalty: float) -> Tables:
    """Return the gradient of the objective for every table.

    The objective is the sum over heads of the mean over rows of the cross-entropy (query 0 left out), plus ``penalty``
    times the sum of squares of all entries.
    """
    read = _Read(tables, data)
    windows, heads, length = read.key.shape
    grads = {name: torch.zeros_like(table) for name, table in tables.items()}
    sink, key = torch.zeros_like(read.key), torch.zeros_like(read.key)
    classes = torch.zeros_like(read.classes)
    query_factors, key_factors = torch.zeros_like(read.queries), torch.zeros_like(read.keys)
    distance = torch.zeros_like(read.distance)
    for block in data.blocks:
        queries, stop = block.queries, block.stop
        error = predicted_rows(tables, data, read, block).sub_(block.target)
        sink[:, :, queries] = error[..., 0]
        error[..., 0] = 0
        held = error.view(-1).index_select(0, block.places).view(heads, -1)
        grads["relations"].index_add_(1, block.relation, held)
        key[:, :, :stop] += error.sum(2)
        distance[:, queries, :stop] = error.sum(0)
        rows = error.view(windows, -1, stop)
        classes[:, :, queries] = (rows @ data.marks[:, :stop]).unflatten(1, (heads, -1))
        each = error.flatten(0, 1)
        keys = read.keys[:, :, :stop].flatten(0, 1)
        query_factors[:, :, queries] = (each @ keys).unflatten(0, (windows, heads))
        written = each.transpose(1, 2) @ read.queries[:, :, queries].flatten(0, 1)
        key_factors[:, :, :stop] += written.unflatten(0, (windows, heads))
    marks = data.marks.flatten(0, 1).T
    pairs = marks @ _by_position(classes).flatten(1)
    grads["class_pair"] = pairs.unflatten(1, (heads, -1)).permute(1, 0, 2).contiguous()
    grads["sink_class"] = marks @ _by_position(sink)
    grads["distance"].flatten(1).index_add_(1, data.places.flatten(), distance.flatten(1))
    tokens = data.tokens.flatten()
    grads["sink_token"].index_add_(0, tokens, _by_position(sink))
    grads["key_token"].index_add_(0, tokens, _by_position(key))
    before = data.tokens[:, :-1].flatten()
    grads["token_before_key"].index_add_(0, before, _by_position(key[:, :, 1:]))
    grads["query_factors"].index_add_(0, tokens, _by_position(query_factors))
    grads["key_factors"].index_add_(0, tokens, _by_position(key_factors))
    for name, table in tables.items():
        grads[name].div_(data.rows).add_(table, alpha=2 * penalty)
    return grads


def _by_position(values: torch.Tensor) -> torch.Tensor:
    """[W, H, T, ...] to [W * T, H, ...]."""
    return values.transpose(1, 2).flatten(0, 1)


def _forms(tables: Tables, seen: np.ndarray) -> list[Scores]:
    """Round the tables and drop entries that are practically zero."""
    arrays = {name: table.cpu().numpy() for name, table in tables.items()}
    return [
        Scores(
            sink_class=_rounded(arrays["sink_class"][:, head]),
            sink_token=_sparse(seen, arrays["sink_token"][:, head]),
            class_pair=_pairs(arrays["class_pair"][head]),
            key_token=_sparse(seen, arrays["key_token"][:, head]),
            token_before_key=_sparse(seen, arrays["token_before_key"][:, head]),
            query_factors=_factors(seen, arrays["query_factors"][:, head]),
            key_factors=_factors(seen, arrays["key_factors"][:, head]),
            distance=tuple(_rounded(row) for row in arrays["distance"][head]),
            relations=dict(zip(RELATIONS, _rounded(arrays["relations"][head]), strict=True)),
        )
        for head in range(len(arrays["relations"]))
    ]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.astype(np.float64).round(3).tolist())


def _sparse(tokens: np.ndarray, values: np.ndarray) -> tuple[tuple[int, float], ...]:
    kept = np.abs(values) >= 0.02
    return tuple(zip(tokens[kept].tolist(), _rounded(values[kept]), strict=True))


def _pairs(values: np.ndarray) -> tuple[tuple[int, int, float], ...]:
    kept = np.nonzero(np.abs(values) >= 0.02)
    return tuple(zip(*(places.tolist() for places in kept), _rounded(values[kept]), strict=True))


def _factors(tokens: np.ndarray, values: np.ndarray) -> tuple[tuple[int, tuple[float, ...]], ...]:
    loads = values.astype(np.float64).round(2).tolist()
    return tuple(zip(tokens.tolist(), map(tuple, loads), strict=True))
