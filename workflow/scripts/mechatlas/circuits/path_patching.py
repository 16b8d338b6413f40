"""Path patching: what a sender does to the metric through chosen receivers, directly or by way of MLPs.

For a sender s and receivers R (Wang et al. 2023, section 3.1 and appendix B):

1. in the clean run, s writes its corrupted activation, all other heads are held at their clean one, and the MLPs in
   between compute anew; the inputs of R are recorded;
2. in the clean run, the inputs of R are those recorded, and everything after them computes anew.

Edge patching, as in `exact_edges`, holds the MLPs too (``through_mlps=False``). Step 1 is one sweep over the layers
with the change of the residual stream of all senders as one batch; only MLPs are computed in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.components import Graph
from mechatlas.circuits.engine import attend
from mechatlas.circuits.metrics import Metric
from mechatlas.circuits.traces import source_differences, split, trace, unchanged
from mechatlas.models.transformer import Transformer

MEMORY = 2**27  # bytes of residual changes per batch of senders


def path_patching(
    model: Transformer,
    clean: Tensor,
    corrupted: Tensor,
    end: Tensor,
    metric: Metric,
    senders: Sequence[str | Iterable[str]],
    receivers: Iterable[str],
    *,
    through_mlps: bool = True,
) -> Tensor:
    """Patch the paths from each sender to a set of receivers.

    Parameters
    ----------
    model : Transformer
    clean, corrupted : int64 Tensor [N, T]
    end : int64 Tensor [N]
        Position that is read.
    metric : Metric
    senders : sequence of str or of collections of str
        Sources such as ``"embed"``, ``"L1.H2"``, ``"L1.mlp"``; a collection is patched as one.
    receivers : iterable of str
        Destinations such as ``"L3.H5.q"``, ``"L3.mlp"``, ``"logits"``, patched together.
    through_mlps : bool
        Whether MLPs between senders and receivers compute anew.

    Returns
    -------
    Tensor [senders, N]
        The metric of the patched clean run. Senders do not influence one another.

    Raises
    ------
    UserError
        If a sender or receiver does not exist.
    """
    sweep = PathSweep(model, clean, corrupted, end, metric)
    return sweep(senders, receivers, through_mlps=through_mlps)


class PathSweep:
    """Both runs of N pairs, from which any paths are patched (see `path_patching`, whose arguments these are)."""

    def __init__(
        self, model: Transformer, clean: Tensor, corrupted: Tensor, end: Tensor, metric: Metric
    ):
        self.graph = Graph.of(model.config)
        self._at_once = max(
            1, MEMORY // (clean.numel() * model.config.d_model * model.dtype.itemsize)
        )
        with fast_matmul(), torch.no_grad():
            self._paths = _Paths(model, clean, corrupted, end, metric)

    def __call__(
        self,
        senders: Sequence[str | Iterable[str]],
        receivers: Iterable[str],
        *,
        through_mlps: bool = True,
    ) -> Tensor:
        """Return the metric of the patched clean run, ``[senders, N]``."""
        sets = [[s] if isinstance(s, str) else list(s) for s in senders]
        chosen = torch.zeros(len(sets), self.graph.n_sources, dtype=torch.bool)
        for row, names in zip(chosen, sets, strict=True):
            row[[self.graph.source(name) for name in names]] = True
        wanted = {self.graph.destination(name) for name in receivers}
        with fast_matmul(), torch.no_grad():
            parts = chosen.split(self._at_once)
            return torch.cat([self._paths.values(part, wanted, through_mlps) for part in parts])


class _Paths:
    """All activations of both runs."""

    def __init__(self, model, clean, corrupted, end, metric):
        last = int(end.max()) + 1
        clean, corrupted = (x[:, :last].to(model.device) for x in (clean, corrupted))
        self.model, self.metric, self.graph = model, metric, Graph.of(model.config)
        self.first = unchanged(clean, corrupted, end)
        self.clean, other = (trace(model, model.embed(x)) for x in (clean, corrupted))
        self.delta = source_differences(model, other, self.clean, self.first)
        self.at = torch.arange(len(end), device=model.device), end.to(model.device) - self.first
        rotary = model.rotary(last)
        self.rotary = None if rotary is None else tuple(x[self.first :] for x in rotary)

    def values(self, chosen: Tensor, receivers: set[int], through_mlps: bool) -> Tensor:
        """Return the metric ``[V, N]`` for sets of senders, bool ``[V, S]``."""
        self.receivers, self.through_mlps = receivers, through_mlps
        recorded = self._record(chosen.to(self.delta.device))
        final = recorded.get(self.graph.n_destinations - 1)
        if final is None:
            final = self._rerun(recorded, len(chosen))
        final, weights = final[:, *self.at], self.model.weights
        return self.metric(self.model.norm(final, weights.final_norm, weights.final_norm_bias))

    def _record(self, chosen: Tensor) -> dict[int, Tensor]:
        """Return the inputs of the receivers, ``[V, N, T, d]``, with heads other than the senders held (step 1)."""
        graph, delta = self.graph, self.delta
        weights = chosen.to(delta.dtype)
        change = torch.einsum("v,n...->vn...", weights[:, 0], delta[0])
        recorded, source = {}, 1
        for layer in range(graph.n_layers):
            # What lies behind the last receiver is not needed.
            if len(recorded) == len(self.receivers):
                break
            first, mlp = layer * graph.readers, source + graph.n_heads
            heads = range(first, first + graph.readers - 1)
            self._keep(recorded, heads, self.clean.pre[layer], change)
            change = change + torch.einsum(
                "vs,s...->v...", weights[:, source:mlp], delta[source:mlp]
            )
            self._keep(recorded, [heads.stop], self.clean.mid[layer], change)
            if self.through_mlps:
                reached = torch.nonzero(chosen[:, :mlp].any(1) & ~chosen[:, mlp]).flatten()
                mid, out = (x[layer][:, self.first :] for x in (self.clean.mid, self.clean.mlp))
                change[reached] += self.model.mlp(mid + change[reached], layer) - out
            change[chosen[:, mlp]] += delta[mlp]
            source = mlp + 1
        self._keep(recorded, [graph.n_destinations - 1], self.clean.pre[-1], change)
        return recorded

    def _keep(
        self, recorded: dict[int, Tensor], found: Iterable[int], base: Tensor, change: Tensor
    ) -> None:
        for destination in self.receivers.intersection(found):
            recorded[destination] = base[:, self.first :] + change

    def _rerun(self, recorded: dict[int, Tensor], variants: int) -> Tensor:
        """Return the final residuals ``[V, N, T, d]`` of runs with the recorded inputs (step 2)."""
        model, graph = self.model, self.graph
        start = min(recorded, default=graph.n_destinations - 1) // graph.readers
        x = self.clean.pre[start][:, self.first :]
        x = x.expand(variants, *x.shape).flatten(0, 1)
        for layer in range(start, graph.n_layers):
            first, weights = layer * graph.readers, model.weights.layers[layer]
            qkv = torch.cat(model.qkv(x, layer, self.rotary), dim=2)
            for reader in range(graph.readers - 1):
                if first + reader in recorded:
                    inputs = recorded[first + reader].flatten(0, 1)
                    new = torch.cat(model.qkv(inputs, layer, self.rotary), dim=2)
                    qkv[:, :, reader] = new[:, :, reader]
            q, k, v = split(model, qkv)
            before = self.clean.qkv[layer][:, : self.first].repeat(variants, 1, 1, 1)
            _, k0, v0 = split(model, before)
            z = attend(
                q, torch.cat([k0, k], 1), torch.cat([v0, v], 1), model.attention_scale(layer)
            )
            x = x + F.linear(z.flatten(2), weights.w_o.mT, weights.b_o)
            mid = recorded.get(first + graph.readers - 1)
            x = x + model.mlp(x if mid is None else mid.flatten(0, 1), layer)
        return x.unflatten(0, (variants, -1))
