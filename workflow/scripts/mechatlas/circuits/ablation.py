"""Removing heads and MLPs: what they write instead, and how well the model does the task then.

A removed node writes, at each position, its mean over other prompts (``mean``: the corrupted prompts, as Wang et al.
2022, arXiv 2211.00593, section 2.2; ``mean_clean``: the prompts themselves), zero (``zero``), or what it writes for the
paired corrupted prompt (``resample``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.engine import (
    Replacement,
    Run,
    Start,
    first_difference,
    pair_slices,
    rows_at_once,
)
from mechatlas.circuits.metrics import Metric, make_metric
from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer

ABLATIONS = ("mean", "mean_clean", "zero", "resample")


class Ablation:
    """The task under any set of kept nodes.

    Parameters
    ----------
    model : Transformer
    clean, corrupted : int64 Tensor [N, T]
        Paired prompts of equal length; the last token predicts the answer.
    answers, wrong : int64 Tensor [N]
    kind : str
        One of `ABLATIONS`.
    metric : str
        See `mechatlas.circuits.metrics`.
    rows : int, optional
        Tokens that run at once.

    Raises
    ------
    UserError
        If the ablation or the metric does not exist.
    """

    def __init__(
        self,
        model: Transformer,
        clean: Tensor,
        corrupted: Tensor,
        answers: Tensor,
        wrong: Tensor,
        *,
        kind: str = "mean",
        metric: str = "logit_difference",
        rows: int | None = None,
    ):
        if kind not in ABLATIONS:
            raise UserError(
                f"ablation {kind!r} does not exist; choose one of {', '.join(ABLATIONS)}"
            )
        clean, corrupted = clean.to(model.device), corrupted.to(model.device)
        self.model, self.kind = model, kind
        self.rows = rows or rows_at_once(model.device)
        first = unchanged(clean, corrupted, kind)
        length = clean.shape[1] - first
        self.slices = pair_slices(len(clean), length, self.rows)
        self.at_once = max(1, self.rows // (length * (self.slices[0].stop)))
        replacement = make_replacement(model, clean, corrupted, kind, first, self.slices)
        self.runs = [Run(model, clean[s], first, replacement.select(s)) for s in self.slices]
        self.full = full_set(model)
        self.keep = self.full
        self.metric: Metric = make_metric("logit_difference", model, answers, wrong)
        self.metric = make_metric(metric, model, answers, wrong, self.residuals(self.full[None])[0])

    def __len__(self) -> int:
        return self.slices[-1].stop

    def rebase(self, keep: Tensor) -> None:
        """Choose the set of kept nodes from which later variants are resumed; results do not depend on it."""
        self.keep = keep
        for run in self.runs:
            run.rebase(keep)

    def residuals(self, keeps: Tensor) -> Tensor:
        """Return the normalised final residuals ``[V, N, d]`` under sets of kept nodes, bool ``[V, L, H + 1]``."""
        layers = self.model.config.n_layers
        differ = (keeps != self.keep).any(-1)
        joins = torch.where(differ.any(1), differ.int().argmax(1), layers)
        order = joins.argsort(stable=True)
        out = self.model.weights.embedding.new_empty(
            len(keeps), len(self), self.model.config.d_model
        )
        with fast_matmul(), torch.inference_mode():
            for part in order.split(self.at_once) if len(keeps) else ():
                for pairs, run in zip(self.slices, self.runs, strict=True):
                    starts = _starts(run, keeps[part], joins[part])
                    out[part, pairs] = run.finish(starts, keeps[part])
        return out

    def values(self, keeps: Tensor) -> Tensor:
        """Return the metric of every prompt, ``[V, N]``, under sets of kept nodes, bool ``[V, L, H + 1]``."""
        with torch.inference_mode():
            return torch.cat([self.metric(self.residuals(part)) for part in keeps.split(256)])


def full_set(model: Transformer) -> Tensor:
    """Return the set of all nodes, bool ``[L, H + 1]``."""
    return torch.ones(model.config.n_layers, model.config.n_heads + 1, dtype=torch.bool)


def without_each(keep: Tensor, nodes: Sequence[int] | Tensor | None = None) -> Tensor:
    """Return the sets that lack one node each, ``[V, L, H + 1]`` (of all kept nodes by default)."""
    nodes = keep.flatten().nonzero()[:, 0] if nodes is None else torch.as_tensor(nodes)
    sets = keep.flatten().repeat(len(nodes), 1)
    sets[torch.arange(len(nodes)), nodes] = False
    return sets.view(-1, *keep.shape)


def unchanged(clean: Tensor, corrupted: Tensor, kind: str) -> int:
    """Return how many positions at the start no replacement can change.

    With ``resample`` those before clean and corrupted prompts differ; with a mean those at which all prompts have the
    same tokens; with ``zero`` none.
    """
    if kind == "zero":
        return 0
    if kind == "resample":
        return first_difference(clean, corrupted)
    prompts = torch.cat([clean, clean if kind == "mean_clean" else corrupted])
    return first_difference(prompts, prompts[:1].expand_as(prompts))


@torch.inference_mode()
def make_replacement(
    model: Transformer,
    clean: Tensor,
    corrupted: Tensor,
    kind: str,
    first: int,
    slices: Sequence[slice],
) -> Replacement:
    """Compute what removed nodes write from position ``first`` on."""
    config, length = model.config, clean.shape[1] - first
    sums: dict[tuple[str, int], Tensor] = {}
    kept: dict[tuple[str, int], list[Tensor]] = {}

    def see(point: str):
        def hook(value: Tensor, layer: int) -> None:
            value = value[:, first:]
            if kind == "resample":
                kept.setdefault((point, layer), []).append(value)
            else:
                sums[point, layer] = sums.get((point, layer), 0) + value.sum(0, keepdim=True)

        return hook

    if kind == "zero":
        z = torch.zeros(
            1, length, config.n_heads, config.d_head, dtype=model.dtype, device=model.device
        )
        mlp = torch.zeros(1, length, config.d_model, dtype=model.dtype, device=model.device)
        return Replacement([z] * config.n_layers, [mlp] * config.n_layers)
    prompts = clean if kind == "mean_clean" else corrupted
    for part in slices:
        model.forward(prompts[part], {"z": see("z"), "mlp_out": see("mlp_out")}, logits=False)

    def of(point: str) -> list[Tensor]:
        if kind == "resample":
            return [torch.cat(kept[point, layer]) for layer in range(config.n_layers)]
        return [sums[point, layer] / len(prompts) for layer in range(config.n_layers)]

    return Replacement(of("z"), of("mlp_out"))


def _starts(run: Run, keeps: Tensor, joins: Tensor) -> list[Start]:
    """Return where variants (ordered by the first layer that differs) leave the base run."""
    layers = run.model.config.n_layers

    def rows(layer: int, sets: Tensor) -> Tensor:
        if layer == layers:
            return run.pre(layers).expand(len(sets), -1, -1, -1)
        return run.pre(layer) + run.mixed(layer, sets[:, layer])

    return [
        Start(layer, layer < layers, partial(rows, layer, keeps[joins == layer]))
        for layer in joins.unique().tolist()
    ]
