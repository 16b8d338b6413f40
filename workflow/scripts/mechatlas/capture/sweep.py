"""The pass over a chunk of windows: one forward pass per batch writes the shards of all layers."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechatlas.capture import events as select
from mechatlas.capture.draws import random_pairs, sampled_queries, uniform_of
from mechatlas.capture.patterns import activation_file, pattern_file
from mechatlas.capture.reservoirs import ROLES, Reservoir, new_events
from mechatlas.capture.shards import ShardWriter
from mechatlas.capture.statistics import HeadStatistics, statistics_table
from mechatlas.corpus.windows import SPLITS, Windows, read_windows
from mechatlas.io import (
    UserError,
    atomic_path,
    progress,
    provenance,
    seed_for,
    write_json,
    write_table,
)
from mechatlas.models.batches import largest_batch
from mechatlas.models.points import point_width
from mechatlas.models.transfer import to_host
from mechatlas.models.transformer import POINTS, Transformer

logger = logging.getLogger("mechatlas")

WINDOWS_PER_READ = 1024
NOT_STORED = ("attn_scores", "pattern", "logits")
SINGLE = ("embed", "final_norm")  # points that exist once, not in every layer


@dataclass(frozen=True)
class CaptureSettings:
    """What a pass keeps.

    Attributes
    ----------
    max_per_document : int
        Most top events of a head from one document.
    candidates : int
        Top events kept per head and split and chunk; the ``topk`` of `merge_events` may not exceed it.
    sample : int
        Size of the sample per head and split from which quantile events are drawn.
    query_rows : int
        Query positions per window that this sample is drawn from.
    random_events : int
        Uniformly random events per head and split.
    batch_windows : int
        Windows per forward pass. Rounding in matrix products depends on it (not on chunks).
    pattern_dtype : str
        ``float16`` or ``float32``.
    activations : sequence of str
        Hook points whose values are stored, float32.
    seed : int
    """

    max_per_document: int = 5
    candidates: int = 1000
    sample: int = 400
    query_rows: int = 2
    random_events: int = 200
    batch_windows: int = 8
    pattern_dtype: str = "float16"
    activations: Sequence[str] = ()
    seed: int = 0


@dataclass
class _Layer:
    """What is gathered of one layer."""

    top: Reservoir
    sample: Reservoir
    statistics: HeadStatistics
    negatives_seed: int
    random: list[np.ndarray] = field(default_factory=list)


def capture_chunk(
    model: Transformer,
    windows_path: str | Path,
    folder: str | Path,
    *,
    first: int,
    stop: int,
    settings: CaptureSettings,
    facts: dict[str, Any] | None = None,
) -> None:
    """Capture all heads on windows ``first`` to ``stop`` (exclusive) and write the chunk folder, whole or not at all.

    The folder holds ``index.json``, ``events.layer_{l}.parquet`` (candidate events), ``head_stats.parquet``,
    ``patterns.layer_{l}.safetensors`` (windows of the pattern sample) and
    ``activations.{point}.layer_{l}.safetensors``. Batches are cut from the whole table of windows, so the values of a
    window do not depend on the chunk. Memory is bounded by the settings, not by the number of windows.

    Raises
    ------
    UserError
        If the windows do not fit the model, an activation point is unknown, or files are damaged.
    """
    _check(settings)
    table = read_windows(windows_path, tokens=False)
    first, stop = min(int(first), len(table)), min(int(stop), len(table))
    facts = provenance(**(facts or {}), seed=settings.seed, first=first, stop=stop)
    with atomic_path(folder, folder=True) as temporary, torch.inference_mode():
        length = read_windows(windows_path, 0, 1).tokens.shape[1]
        size = batch_size(model, table, length, settings)
        sweep = Sweep(model, table, temporary, first, stop, settings, facts, length, size)
        sweep.run(_batches(windows_path, sweep.grid))
        sweep.finish()


def batch_size(model: Transformer, table: Windows, length: int, settings: CaptureSettings) -> int:
    """Return how many windows a pass takes at once: ``batch_windows``, or fewer if a GPU has too little memory."""
    if model.device.type == "cpu":
        return settings.batch_windows

    def attempt(size: int) -> None:
        """Do a forward pass that keeps the events of all heads, and forget them."""
        trial = Sweep(model, table, Path(), 0, size, settings, {}, length, size)
        trial.shards = defaultdict(_Nowhere)
        tokens = np.zeros((size, length), np.int32)
        trial.take(replace(table[:size], tokens=tokens))

    return largest_batch(attempt, min(settings.batch_windows, len(table)), "capture.batch_windows")


class _Nowhere:
    """A shard that forgets what is written."""

    def write(self, name: str, rows: np.ndarray) -> None:
        pass


class Sweep:
    """The state of one pass over windows ``first`` to ``stop`` of ``length`` tokens, ``size`` of them at a time."""

    def __init__(
        self,
        model: Transformer,
        table: Windows,
        folder: Path,
        first: int,
        stop: int,
        settings: CaptureSettings,
        facts: dict[str, Any],
        length: int,
        size: int,
    ):
        self.model, self.table, self.folder = model, table, folder
        self.first, self.stop, self.settings, self.facts = first, stop, settings, facts
        self.kept_windows = first + np.flatnonzero(table.pattern_sample[first:stop]).astype(
            np.int32
        )
        self.layers = [self._new_layer(layer) for layer in range(model.config.n_layers)]
        self.rounding = 0.0
        self.length, self.size = length, size
        #: Where batches begin: at multiples of the size, whatever the chunk.
        self.grid = range(first // size * size, stop, size)
        self.pairs = random_pairs(
            seed_for(settings.seed, "random events"), table.splits, length, settings.random_events
        )
        self.batch: select.Batch | None = None
        self.values: Tensor | None = None
        self.buffer: Tensor | None = None
        self.shards: MutableMapping[tuple[str, int], ShardWriter | _Nowhere] = {}

    def run(self, batches: Iterable[Windows]) -> None:
        """Run the model over the windows of all batches of the `grid`, and write shards on the way."""
        self._open()
        label = f"windows {self.first} to {self.stop}"
        for part in progress(batches, total=len(self.grid), desc=label, unit="batches"):
            self.take(part)

    def take(self, part: Windows) -> None:
        """Run the model over one batch and keep what is to be kept of it."""
        self.batch = self._plan(part, self.pairs)
        tokens = torch.from_numpy(part.tokens.astype(np.int64)).to(self.model.device)
        self.model.forward(tokens, self._hooks(), logits=False)

    def finish(self) -> None:
        """Write what was gathered."""
        for shard in self.shards.values():
            shard.close()
        for index, layer in enumerate(self.layers):
            write_table(
                self.folder / f"events.layer_{index}.parquet", events_table(layer), self.facts
            )
        statistics = statistics_table([layer.statistics for layer in self.layers])
        write_table(self.folder / "head_stats.parquet", statistics, self.facts)
        write_json(self.folder / "index.json", self._index(), self.facts)

    def _new_layer(self, index: int) -> _Layer:
        settings, heads, splits = self.settings, self.model.config.n_heads, self.table.splits
        return _Layer(
            top=Reservoir(
                "write_norm", settings.candidates, splits, heads,
                documents=self.table.doc_codes, per_document=settings.max_per_document,
            ),
            # One more than the sample: its priority is the threshold of the sampling weights.
            sample=Reservoir("priority", settings.sample + 1, splits, heads),
            statistics=HeadStatistics(len(SPLITS), heads),
            negatives_seed=seed_for(settings.seed, "layer", index),
        )  # fmt: skip

    def _plan(self, part: Windows, pairs: np.ndarray) -> select.Batch:
        """Draw what is random about a batch; the same for all layers and heads."""
        windows = part.first + np.arange(len(part))
        own = (windows >= self.first) & (windows < self.stop)
        seed, length = self.settings.seed, part.tokens.shape[1]
        queries = sampled_queries(seed, windows, length, self.settings.query_rows)
        uniforms = uniform_of(
            seed_for(seed, "sample"), windows[:, None, None], queries[..., None], np.arange(length)
        )
        edges = np.searchsorted(pairs[:, 0], windows[[0, -1]] + (0, 1))
        here = pairs[edges[0] : edges[1]]
        here = here[own[here[:, 0] - part.first]] - (part.first, 0, 0)
        on_device = (torch.from_numpy(x).to(self.model.device) for x in (queries, uniforms))
        return select.Batch(windows, part.splits.astype(np.int64), own, *on_device, here)

    def _hooks(self) -> dict[str, Callable[[Tensor, int], None]]:
        hooks: dict[str, Callable[[Tensor, int], None]] = {
            point: lambda value, layer, point=point: self._store(point, value, layer)
            for point in self.settings.activations
        }
        store_values = hooks.get("v")

        def keep_values(value: Tensor, layer: int) -> None:
            self.values = value
            if store_values:
                store_values(value, layer)

        return {**hooks, "v": keep_values, "pattern": self._keep_events}

    def _keep_events(self, pattern: Tensor, index: int) -> None:
        layer, batch, settings = self.layers[index], self.batch, self.settings
        value_norms = self.model.value_norms(self.values, index)
        without_bos = value_norms.clone()
        without_bos[..., 0] = 0
        if self.buffer is None or self.buffer.shape != pattern.shape:
            self.buffer = torch.empty(pattern.shape, dtype=torch.float32, device=pattern.device)
        norms = torch.mul(pattern, without_bos[:, :, None, :], out=self.buffer)
        layer.top.add(
            select.top_events(
                pattern, norms, batch, settings.max_per_document, layer.top.thresholds,
                layer.negatives_seed,
            )
        )  # fmt: skip
        sample = layer.sample
        sample.add(
            select.quantile_candidates(pattern, norms, batch, sample.thresholds, sample.size)
        )
        layer.random.append(select.random_events(pattern, value_norms, batch))
        layer.statistics.add(pattern, norms, batch.splits, batch.own)
        self._keep_patterns(pattern, index)

    def _keep_patterns(self, pattern: Tensor, index: int) -> None:
        batch = self.batch
        places = np.flatnonzero(batch.own & self.table.pattern_sample[batch.windows])
        if len(places) == 0:
            return
        exact = pattern[torch.from_numpy(places).to(pattern.device)].float()
        stored = exact.to(getattr(torch, self.settings.pattern_dtype))
        self.rounding = max(self.rounding, float((stored.float() - exact).abs().max()))
        self.shards["pattern", index].write("patterns", to_host(stored))

    def _store(self, point: str, value: Tensor, layer: int) -> None:
        rows = value[torch.from_numpy(self.batch.own).to(value.device)].flatten(0, 1).flatten(1)
        shard = self.shards[point, 0 if point in SINGLE else layer]
        shard.write("activations", to_host(rows.float()))

    def _open(self) -> None:
        """Create the files that are written while the pass goes on."""
        config, length = self.model.config, self.length
        kept, own = self.kept_windows, np.arange(self.first, self.stop, dtype=np.int32)
        shape = (len(kept), config.n_heads, length, length)
        for layer in range(config.n_layers):
            arrays = {
                "patterns": (self.settings.pattern_dtype, shape),
                "windows": ("int32", (len(kept),)),
            }
            shard = ShardWriter(self.folder / pattern_file(layer), arrays, self.facts)
            shard.write("windows", kept)
            self.shards["pattern", layer] = shard
        for point in self.settings.activations:
            for layer in range(1 if point in SINGLE else config.n_layers):
                arrays = {
                    "activations": ("float32", (len(own) * length, point_width(point, config))),
                    "windows": ("int32", (len(own),)),
                }
                shard = ShardWriter(self.folder / activation_file(point, layer), arrays, self.facts)
                shard.write("windows", own)
                self.shards[point, layer] = shard

    def _index(self) -> dict[str, Any]:
        settings, config = self.settings, self.model.config
        return {
            "first": self.first,
            "stop": self.stop,
            "window_len": self.length,
            "layers": config.n_layers,
            "heads": config.n_heads,
            "pattern_windows": self.kept_windows.tolist(),
            "pattern_dtype": settings.pattern_dtype,
            "pattern_rounding": self.rounding,
            "candidates": settings.candidates,
            "max_per_document": settings.max_per_document,
            "sample": settings.sample,
            "query_rows": settings.query_rows,
            "random_events": settings.random_events,
            "batch_windows": self.size,
            "activations": list(settings.activations),
        }


def events_table(layer: _Layer) -> Any:
    """Return the candidate events of a layer as a pyarrow table, a column per field and one for the role."""
    import pyarrow as pa

    parts = [
        layer.top.select(),
        layer.sample.select(),
        np.concatenate(layer.random or [new_events(0)]),
    ]
    events = np.concatenate(parts)
    roles = np.repeat(np.arange(len(ROLES), dtype=np.int8), [len(part) for part in parts])
    columns = {name: np.ascontiguousarray(events[name]) for name in events.dtype.names}
    return pa.table({"role": roles, **columns})


def _batches(windows_path: str | Path, grid: range) -> Iterator[Windows]:
    """Yield the windows of the batches that begin at ``grid``, reading many batches at a time."""
    block = grid.step * max(1, WINDOWS_PER_READ // grid.step)
    for first in range(grid.start, grid.stop, block):
        part = read_windows(windows_path, first, first + block)
        for start in range(0, min(block, grid.stop - first), grid.step):
            yield part[start : start + grid.step]


def _check(settings: CaptureSettings) -> None:
    allowed = [point for point in POINTS if point not in NOT_STORED]
    unknown = [point for point in settings.activations if point not in allowed]
    if unknown:
        raise UserError(
            f"capture.activations: {', '.join(unknown)} cannot be stored; choose among {', '.join(allowed)}"
        )
    for key in ("max_per_document", "candidates", "sample", "query_rows", "batch_windows"):
        if getattr(settings, key) < 1:
            raise UserError(
                f"capture.{key}: {getattr(settings, key)} is too small; set it to at least 1"
            )
    if settings.random_events < 0:
        raise UserError("capture.random_events must be 0 or more")
    if settings.pattern_dtype not in ("float16", "float32"):
        raise UserError(
            f"capture.pattern_dtype: {settings.pattern_dtype!r} is unknown; choose float16 or float32"
        )
