"""Runs of a model in which every edge carries either its clean or its corrupted activation.

The residual stream is a sum, so the input of a destination v under a circuit C (the edges that stay clean) is

    x_v = x'_v + sum over u in C(v) of (a_u - a'_u),

where ' marks the corrupted run and a_u is what source u writes *in this run*, given its own inputs (Conmy et al. 2023,
section 3; Hanna et al. 2024, section 2). An `EdgeRun` holds all activations under one circuit. Other circuits are
evaluated from there in batches, and only what they change is computed again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.components import Graph
from mechatlas.circuits.edges import feeds, reaches_logits, stages
from mechatlas.circuits.engine import attend
from mechatlas.circuits.metrics import Metric
from mechatlas.circuits.traces import source_differences, trace, unchanged, write_heads
from mechatlas.models.transformer import Transformer, rotate

MEMORY = 2**28  # bytes of source activations that one batch of circuits may hold


class EdgeRun:
    """All activations of N prompts under a circuit, starting at the empty one (the corrupted run).

    Parameters
    ----------
    model : Transformer
    clean, corrupted : int64 Tensor [N, T]
    end : int64 Tensor [N]
        Position that is read.
    metric : Metric
    full : bool
        Start at the full circuit (the clean run) instead.

    Attributes
    ----------
    edges : bool array [S, D]
        The circuit.
    """

    def __init__(
        self,
        model: Transformer,
        clean: Tensor,
        corrupted: Tensor,
        end: Tensor,
        metric: Metric,
        *,
        full: bool = False,
    ):
        self.model, self.metric, self.graph = model, metric, Graph.of(model.config)
        self._feeds = feeds(self.graph)
        last = int(end.max()) + 1
        clean, corrupted = (x[:, :last].to(model.device) for x in (clean, corrupted))
        self._first = unchanged(clean, corrupted, end)
        with torch.no_grad():
            self._low = trace(model, model.embed(corrupted))
            high = trace(model, model.embed(clean)) if full else self._low
        self._delta = source_differences(model, high, self._low, self._first)
        self._delta[0] = (model.embed(clean) - self._low.pre[0])[:, self._first :]
        self._qkv = [x.clone() for x in high.qkv]
        self._at_end = torch.arange(len(end), device=model.device), end.to(model.device)
        self.edges = self.graph.edges if full else np.zeros_like(self.graph.edges)
        self._known = np.ones(self.graph.n_destinations, dtype=bool)

    @torch.no_grad()
    def values(self, circuits: np.ndarray) -> Tensor:
        """Return the metric ``[K, N]`` under each of K circuits, bool ``[K, S, D]``."""
        _, changed, _ = self._affected(circuits)
        each = max(1, int(changed.sum())) * self._delta[0].numel() * self._delta.element_size()
        parts = range(0, len(circuits), max(1, MEMORY // each))
        return torch.cat([self._run(circuits[i : i + parts.step]) for i in parts])

    @torch.no_grad()
    def move(self, circuit: np.ndarray) -> None:
        """Make ``circuit``, bool ``[S, D]``, the one that is held."""
        self._run(circuit[None], move=True)

    def _affected(self, circuits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which destinations to compute, which sources change, which destinations are left stale.

        A destination changes if its edges differ or it reads a source that changes. It is computed if a path leads
        from its node to the logits; without a path its effect is zero.
        """
        union = circuits.any(0)
        useful = reaches_logits(self.graph, union)
        changes = (circuits != self.edges).any((0, 1)) | ~self._known
        changed = np.zeros(self.graph.n_sources, dtype=bool)
        for destinations, sources in stages(self.graph):
            changes[destinations] |= union[changed, destinations].any(0)
            live = changes[destinations] & useful[destinations]
            changed[sources] = self._feeds[destinations, sources][live].any(0)
        return changes & useful, changed, changes & ~useful

    def _run(self, circuits: np.ndarray, *, move: bool = False) -> Tensor:
        live, changed, stale = self._affected(circuits)
        batch = _Batch(self, circuits, torch.from_numpy(np.flatnonzero(changed)))
        for layer in range(self.graph.n_layers):
            first = layer * self.graph.readers
            mlp = first + self.graph.readers - 1
            readers = torch.from_numpy(np.flatnonzero(live[first:mlp]))
            if len(readers):
                x = batch.inputs(self._low.pre[layer], first + readers)
                inputs = self._project(x, layer, readers)
                batch.add_heads(layer, readers, inputs)
                if move:
                    self._qkv[layer][:, self._first :, readers] = inputs[:, 0].permute(1, 2, 0, 3)
            if live[mlp]:
                batch.add_mlp(layer, mlp)
        if move:
            self._delta[batch.changed] = batch.outputs[:, 0]
            self.edges, self._known = circuits[0].copy(), ~stale & (self._known | live)
        return self.metric(batch.final())

    def _project(self, x: Tensor, index: int, readers: Tensor) -> Tensor:
        """Map inputs ``[r, K, N, T, d]`` of query, key and value readers to ``[r, K, N, T, dh]``."""
        model, layer, d_head = (
            self.model,
            self.model.weights.layers[index],
            self.model.config.d_head,
        )
        weight = layer.w_qkv.unflatten(1, (-1, d_head))[:, readers].transpose(0, 1)
        y = torch.bmm(model.norm(x, layer.norm1, layer.norm1_bias).flatten(1, -2), weight)
        if layer.b_qkv is not None:
            y += layer.b_qkv.unflatten(0, (-1, d_head))[readers, None]
        y = y.view(*x.shape[:-1], d_head)
        rotary = model.rotary(self._first + x.shape[-2])
        if rotary is None:
            return y
        cos, sin = (angles[self._first :, 0] for angles in rotary)
        turned = readers < self.graph.n_heads + self.graph.n_kv_heads
        y[turned] = rotate(y[turned], cos, sin)
        return y


class _Batch:
    """What the sources that change write under each of K circuits: ``outputs [n, K, N, T, d]`` - corrupted."""

    def __init__(self, run: EdgeRun, circuits: np.ndarray, changed: Tensor):
        self.run, self.changed = run, changed
        self.circuits = torch.from_numpy(circuits).to(run.model.device, run.model.dtype)
        self.outputs = run._delta.new_empty(len(changed), len(circuits), *run._delta.shape[1:])
        self.filled = 0

    def inputs(self, base: Tensor, destinations: Tensor) -> Tensor:
        """Return ``x_v [r, K, N, T, d]`` of destinations whose corrupted input is ``base [N, T, d]``."""
        return self._sums(destinations, base[:, self.run._first :], self.outputs, self.run._delta)

    def final(self) -> Tensor:
        """Return the normalised final residual at the end position, ``[K, N, d]``."""
        run, (pairs, end) = self.run, self.run._at_end
        at = pairs, end - run._first
        logits = torch.tensor([run.graph.n_destinations - 1])
        base, outputs = run._low.pre[-1][pairs, end], self.outputs[:, :, *at]
        x = self._sums(logits, base, outputs, run._delta[:, *at])[0]
        return run.model.norm(x, run.model.weights.final_norm, run.model.weights.final_norm_bias)

    def add_heads(self, layer: int, readers: Tensor, inputs: Tensor) -> None:
        """Attend with new queries, keys and values ``[r, K, N, T, dh]`` and keep what their heads write."""
        run, graph, first = self.run, self.run.graph, self.run._first
        qkv = run._qkv[layer].expand(inputs.shape[1], *run._qkv[layer].shape).clone()
        qkv[:, :, first:, readers] = inputs.permute(1, 2, 3, 0, 4)
        start = 1 + layer * (graph.n_heads + 1)
        fed = run._feeds[layer * graph.readers + readers.numpy()].any(0)
        heads = torch.from_numpy(np.flatnonzero(fed)) - start
        shared = heads // (graph.n_heads // graph.n_kv_heads) + graph.n_heads
        parts = (
            qkv[:, :, first:, heads],
            qkv[..., shared, :],
            qkv[..., shared + graph.n_kv_heads, :],
        )
        z = attend(*(x.flatten(0, 1) for x in parts), run.model.attention_scale(layer))
        z = z.view(*qkv.shape[:2], *z.shape[1:]) - run._low.z[layer][:, first:, heads]
        out = self.outputs[self.filled : self.filled + len(heads)].flatten(1, -2)
        write_heads(z.flatten(0, 2), run.model.output_weights(layer)[heads], out=out)
        self.filled += len(heads)

    def add_mlp(self, layer: int, destination: int) -> None:
        """Keep what the MLP of a layer writes."""
        run = self.run
        x = self.inputs(run._low.mid[layer], torch.tensor([destination]))[0]
        out = run.model.mlp(x, layer)
        torch.sub(out, run._low.mlp[layer][:, run._first :], out=self.outputs[self.filled])
        self.filled += 1

    def _sums(self, destinations: Tensor, base: Tensor, varying: Tensor, fixed: Tensor) -> Tensor:
        """Return base + the sum over sources of circuit x output, ``[r, K, ...]``.

        Outputs are ``varying [n, K, ...]`` for sources that change and ``fixed [S, ...]`` for the others.
        """
        weights = self.circuits[:, :, destinations].mT  # [K, r, S]
        ids = self.changed[: self.filled]
        rest = weights.index_fill(2, ids.to(weights.device), 0).transpose(0, 1).flatten(0, 1)
        used = torch.nonzero(rest.any(0)).flatten()
        rest = torch.cat([rest[:, used], rest.new_ones(len(rest), 1)], dim=1)
        sums = rest @ torch.cat([fixed[used], base[None]]).flatten(1)
        sums = sums.view(len(destinations), len(self.circuits), -1)
        if self.filled:
            outputs = varying[: self.filled].flatten(2)
            for k, weight in enumerate(weights[..., ids]):
                sums[:, k].addmm_(weight, outputs[:, k])
        return sums.unflatten(-1, base.shape)
