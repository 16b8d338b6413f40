"""What a graph will cost, before it is made: nodes, edges, memory and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.graphs.attribute import Settings
from mechatlas.circuits.graphs.run import LocalRun

WHOLE = Settings()
OVERHEAD = 1.7  # time of a graph over that of its products with W_O and W_V (benchmarks: graphs)


@dataclass(frozen=True)
class Forecast:
    """``features`` that are active, ``rows`` to compute, upper bounds of ``edges`` and ``file_mb``, and estimates of
    ``memory_mb`` beyond model and transcoder, ``seconds``."""

    features: int
    rows: int
    edges: int
    file_mb: float
    memory_mb: float
    seconds: float


def forecast(run: LocalRun, targets: int = 10, settings: Settings = WHOLE) -> Forecast:
    """Estimate the cost of a graph from its run.

    A row has an entry for each feature that it can see (an earlier layer, no later position), for each error, token and
    bias. Time is that of the products of the gradients, at a rate that is measured here.
    """
    active, config = run.active, run.model.config
    layers, d = config.n_layers, config.d_model
    counts = torch.zeros(layers + 1, run.length + 1, dtype=torch.float64)
    place = (active.layer + 1, active.position + 1)
    counts.index_put_(place, torch.ones(len(active), dtype=torch.float64), accumulate=True)
    below = counts.cumsum(0).cumsum(1)  # features of earlier layers at positions before
    seen = below[active.layer, active.position + 1] if len(active) else torch.zeros(0)
    embeddings = 1 if run.model.weights.positions is None else 2
    others = (active.layer + embeddings) * (active.position + 1) + 2 * active.layer + 2
    traced = min(len(active), settings.max_features or len(active))
    share = traced / max(1, len(active))
    edges = int(share * float((seen * share + others).sum()))
    edges += targets * (traced + (layers + embeddings) * run.length + 2 * layers + 1)
    itemsize = run.final.dtype.itemsize
    # Each gradient passes two matrices in every layer up to its own, at every position up to its own.
    flops = 4.0 * d * config.n_heads * config.d_head
    work = flops * share * float(((active.layer + 1) * (active.position + 1)).sum())
    work += flops * targets * layers * run.length
    targets_of = [len(run.clt.targets(layer)) for layer in range(layers)]
    rows = sum(n * int((active.layer == layer).sum()) for layer, n in enumerate(targets_of))
    stored = edges * (itemsize + 4)
    return Forecast(
        features=len(active),
        rows=traced + targets,
        edges=edges,
        file_mb=stored / 1e6,
        # Decoder rows, one chunk, edges twice while they are put in order, W_V of all layers.
        memory_mb=((rows + layers * d) * d * itemsize + settings.memory + 2 * stored) / 1e6,
        seconds=OVERHEAD * work / _rate(run),
    )  # fmt: skip


def _rate(run: LocalRun) -> float:
    """Return the floating-point operations per second of a product like those of a chunk."""
    d = run.model.config.d_model
    a = torch.ones(min(1024, 2**22 // d), d, dtype=run.final.dtype, device=run.final.device)
    b, best = torch.ones(d, d, dtype=a.dtype, device=a.device), float("inf")
    with fast_matmul(), torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
    return 2.0 * len(a) * d * d / best
