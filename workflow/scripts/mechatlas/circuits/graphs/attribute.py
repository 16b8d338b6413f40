"""Attribution: from a run to its graph, whole or capped to the features that matter most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.graphs import graph as kinds
from mechatlas.circuits.graphs.backward import Backward
from mechatlas.circuits.graphs.graph import AttributionGraph
from mechatlas.circuits.graphs.influence import influence
from mechatlas.circuits.graphs.run import LocalRun
from mechatlas.circuits.graphs.targets import Target, salient_logits
from mechatlas.io import UserError, progress

MEMORY = 2**25  # bytes of gradients and rows of one chunk
ROUNDS = 16  # times that a capped graph ranks the features it has not traced yet


@dataclass(frozen=True)
class Settings:
    """How a graph is made.

    Attributes
    ----------
    max_features : int, optional
        Trace only so many features, those with the largest influence; all by default.
    kept_mass : float
        Store of each row the strongest edges with this share of its absolute sum; 1 keeps all.
    memory : int
        Bytes of a chunk.
    """

    max_features: int | None = None
    kept_mass: float = 1.0
    memory: int = MEMORY


WHOLE = Settings()


def attribute(
    run: LocalRun, targets: Sequence[Target] | None = None, settings: Settings = WHOLE
) -> AttributionGraph:
    """Compute the attribution graph of a run.

    Parameters
    ----------
    run : LocalRun
    targets : sequence of Target, optional
        The salient logits by default.
    settings : Settings

    Returns
    -------
    AttributionGraph
        Its rows sum to pre-activations and targets (`AttributionGraph.gaps`).

    Raises
    ------
    UserError
        If settings are out of range, or an edge is not finite.
    """
    _check(settings)
    targets = list(targets or salient_logits(run))
    with fast_matmul(), torch.inference_mode():
        backward = Backward(run)
        rows = _Rows(run, backward, settings)
        rows.add_targets(targets)
        cap = settings.max_features
        if cap is None or cap >= len(run.active):
            rows.add_features(torch.arange(len(run.active)), "features")
        else:
            _add_most_influential(rows, targets, cap)
    return rows.graph(targets)


def _add_most_influential(rows: _Rows, targets: Sequence[Target], cap: int) -> None:
    """Trace features in rounds; each takes those with the most influence on the targets by the rows known so far."""
    count = len(rows.run.active)
    left, size = np.ones(count, bool), max(1, -(-cap // ROUNDS))
    weights = np.array([target.weight for target in targets])
    while cap > 0:
        score = rows.influence(weights)
        score[~left] = -1.0
        chosen = np.argsort(-score, kind="stable")[: min(size, cap)]
        rows.add_features(torch.from_numpy(np.sort(chosen)), f"features, {cap} to go")
        left[chosen] = False
        cap -= len(chosen)


class _Rows:
    """The rows computed so far, each sparse; columns as in `backward.Columns`."""

    def __init__(self, run: LocalRun, backward: Backward, settings: Settings):
        self.run, self.backward, self.settings = run, backward, settings
        self.done: dict[int, int] = {}  # active feature -> row
        self.targets: list[int] = []
        self.sums: list[np.ndarray] = []
        self.indices: list[np.ndarray] = []
        self.data: list[np.ndarray] = []
        order = backward.columns.order.cpu()
        self.rank = torch.empty_like(order)
        self.rank[order] = torch.arange(len(order))

    def add_targets(self, targets: Sequence[Target]) -> None:
        """Compute the rows of the targets."""
        vectors = torch.stack([target.vector for target in targets])
        found = self.backward.final_targets(vectors)
        self.targets = list(range(len(self.sums), len(self.sums) + len(targets)))
        self._store(self.backward.rows(found, self.run.length - 1), "a target")

    def add_features(self, index: Tensor, label: str) -> None:
        """Compute the rows of active features."""
        for position, chunk in progress(list(self._chunks(index)), desc=label, unit="chunks"):
            first = len(self.sums)
            self.done |= {int(i): first + n for n, i in enumerate(chunk)}
            rows = self.backward.rows(self.backward.feature_targets(chunk), position)
            self._store(rows, f"a feature at position {position}")

    def influence(self, weights: np.ndarray) -> np.ndarray:
        """Return the influence of every active feature on the targets by the rows known so far."""
        count, size = len(self.run.active), len(self.sums)
        columns = self.backward.columns.count
        edges = self._matrix(np.arange(size), columns)
        total = columns + len(self.targets)
        where = np.empty(size, np.int64)
        where[self.targets] = columns + np.arange(len(self.targets))
        for feature, row in self.done.items():
            where[row] = int(self.rank[feature])
        picked = csr_array((np.ones(size), (where, np.arange(size))), shape=(total, size))
        square = picked @ edges
        square.resize((total, total))
        start = np.zeros(total)
        start[columns:] = weights
        by_column = influence(square, start)[:count]
        return by_column[self.rank.numpy()]

    def graph(self, targets: Sequence[Target]) -> AttributionGraph:
        """Return the graph: columns in the order of `graph.KINDS`, traced features only, the rest discarded."""
        run, columns = self.run, self.backward.columns
        traced = np.array(sorted(self.done), dtype=np.int64)
        nodes = _nodes(run, targets, traced)
        rows = [self.done[feature] for feature in traced.tolist()]
        others = np.arange(columns.errors, columns.count)
        wanted = np.concatenate([self.rank.numpy()[traced], others])
        edges = self._matrix(np.array(rows + self.targets, np.int64), columns.count)
        self.indices, self.data = [], []  # they would be held a second time
        sums = np.stack([self.sums[row] for row in rows + self.targets])
        edges = edges[:, wanted]
        size, n, t = len(nodes["kind"]), len(traced), len(targets)
        is_row = np.concatenate([np.arange(n), np.arange(size - t, size)])
        full = _placed(edges, is_row, size)
        left_out = {name: np.zeros(size) for name in ("discarded", "discarded_abs")}
        if n < len(run.active) or self.settings.kept_mass < 1:
            for number, (values, stored) in enumerate(
                zip(left_out.values(), (edges, abs(edges)), strict=True)
            ):
                values[is_row] = sums[:, number] - np.asarray(stored.sum(1)).ravel()
        total = np.full(size, np.nan)
        total[is_row] = np.concatenate([_pre_activations(run, traced), _values(run, targets)])
        labels = {size - t + i: target.label for i, target in enumerate(targets) if target.label}
        return AttributionGraph(
            **nodes,
            edges=full,
            total=total,
            **left_out,
            labels=labels,
            tokens=run.tokens.cpu().numpy(),
            facts=_facts(run, self.settings),
        )

    def _chunks(self, index: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Split features by position, and so that gradients and rows fit; within a chunk layers descend."""
        active, columns = self.run.active, self.backward.columns
        index = index.to(active.position.device)
        itemsize, d = self.run.final.dtype.itemsize, self.run.final.shape[1]
        for position in active.position[index].unique().tolist():
            here = index[active.position[index] == position]
            here = here[torch.argsort(active.layer[here], descending=True, stable=True)]
            each = (3 * (position + 1) * d + 2 * columns.count) * itemsize
            for chunk in here.split(max(1, self.settings.memory // each)):
                yield position, chunk

    def _store(self, rows: Tensor, what: str) -> None:
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                f"an edge into {what} is not finite; the transcoder's decoder or the model holds values that are not"
            )
        values = rows.cpu().numpy()
        size = np.abs(values)
        sums = np.stack([values.sum(1, dtype=np.float64), size.sum(1, dtype=np.float64)], 1)
        keep = size > _threshold(size, self.settings.kept_mass)[:, None]
        for row, chosen in zip(values, keep, strict=True):
            index = np.flatnonzero(chosen).astype(np.int32)
            self.indices.append(index)
            self.data.append(row[index])
        self.sums.extend(sums)

    def _matrix(self, rows: np.ndarray, columns: int) -> csr_array:
        indices = [self.indices[row] for row in rows]
        indptr = np.cumsum([0, *map(len, indices)])
        data = np.concatenate([self.data[row] for row in rows])
        return csr_array((data, np.concatenate(indices), indptr), shape=(len(rows), columns))


def _threshold(size: np.ndarray, mass: float) -> np.ndarray:
    """Return for each row of absolute values the largest value that may go so that ``mass`` of its sum stays."""
    if mass >= 1:
        return np.zeros(len(size), size.dtype)
    ordered = np.sort(size, axis=1)
    below = np.cumsum(ordered, axis=1, dtype=np.float64)
    gone = (below <= (1 - mass) * below[:, -1:]).sum(1)
    return np.where(gone > 0, ordered[np.arange(len(size)), np.maximum(gone - 1, 0)], 0)


def _placed(edges: csr_array, is_row: np.ndarray, size: int) -> csr_array:
    """Spread rows over a square matrix; a column keeps its place."""
    lengths = np.zeros(size + 1, np.int64)
    lengths[is_row + 1] = np.diff(edges.indptr)
    square = csr_array((edges.data, edges.indices, np.cumsum(lengths)), shape=(size, size))
    square.sort_indices()
    return square


def _nodes(run: LocalRun, targets: Sequence[Target], traced: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of all nodes."""
    layers, length, bos = run.model.config.n_layers, run.length, run.bos
    grid = np.indices((layers, length)).reshape(2, -1)
    bos_grid = np.indices((layers, bos)).reshape(2, -1)
    each, along = np.arange(layers), np.arange(length)
    active = run.active
    has_positions = run.model.weights.positions is not None
    columns = (active.layer, active.position, active.feature, active.value)
    features = [column.cpu().numpy()[traced] for column in columns]
    last = [np.array([getattr(t, name) for t in targets]) for name in ("token", "weight")]
    parts: list[tuple[int, Any, Any, Any, Any, int]] = [
        (kinds.FEATURE, *features, len(traced)),
        (kinds.ERROR, *grid, -1, 0, grid.shape[1]),
        (kinds.TOKEN, -1, along, run.tokens.cpu().numpy(), 0, length),
        (kinds.POSITION, -1, along, -1, 0, length if has_positions else 0),
        (kinds.BOS_OUTPUT, *bos_grid, -1, 0, bos_grid.shape[1]),
        (kinds.ATTENTION_BIAS, each, -1, -1, 0, layers),
        (kinds.DECODER_BIAS, each, -1, -1, 0, layers),
        (kinds.READER_BIAS, -1, -1, -1, 0, 1),
        (kinds.LOGIT, layers, length - 1, *last, len(targets)),
    ]  # fmt: skip
    nodes = {}
    for i, (name, dtype) in enumerate(
        zip(kinds.COLUMNS, (np.int8, np.int32, np.int32, np.int32, np.float64), strict=True)
    ):
        columns = [
            np.broadcast_to(part[i], part[-1]) if part[-1] else np.empty(0) for part in parts
        ]
        nodes[name] = np.concatenate(columns).astype(dtype)
    return nodes


def _pre_activations(run: LocalRun, traced: np.ndarray) -> np.ndarray:
    """Return the pre-activations of active features."""
    active, values = run.active, np.empty(len(run.active))
    for layer in range(run.model.config.n_layers):
        here = (active.layer == layer).nonzero()[:, 0]
        pre = run.clt.pre_activations(run.read[layer], layer)
        found = pre[active.position[here], active.feature[here]]
        values[here.cpu().numpy()] = found.double().cpu().numpy()
    return values[traced]


def _values(run: LocalRun, targets: Sequence[Target]) -> np.ndarray:
    """Return the targets' values in the model's run."""
    weights = run.model.weights
    x = run.model.norm(run.final[-1], weights.final_norm, weights.final_norm_bias)
    return torch.stack([target.vector @ x for target in targets]).double().cpu().numpy()


def _facts(run: LocalRun, settings: Settings) -> dict[str, Any]:
    return {
        "model_hash": run.model.hash,
        "layers": run.model.config.n_layers,
        "bos": run.bos,
        "decoders": run.clt.decoders,
        "active_features": len(run.active),
        "max_features": settings.max_features,
        "kept_mass": settings.kept_mass,
    }


def _check(settings: Settings) -> None:
    if not 0 < settings.kept_mass <= 1:
        raise UserError(f"kept_mass is {settings.kept_mass}; it must be above 0 and at most 1")
    if settings.max_features is not None and settings.max_features < 1:
        raise UserError(f"max_features is {settings.max_features}; it must be at least 1")
