"""Is a circuit faithful, complete and minimal? (Wang et al. 2022, arXiv 2211.00593, section 4)

F(C) is the mean metric with every node outside C removed; M is the full model, 0 the model without nodes. Percentages
are of F(M). Everything here is to be measured on prompts that did not choose the circuit.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation, without_each
from mechatlas.circuits.components import Graph
from mechatlas.circuits.effects import REPLICATES, effect_rows
from mechatlas.io import rng_for


def faithfulness(
    ablation: Ablation,
    keeps: Tensor,
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Measure how well circuits do the task on their own.

    Parameters
    ----------
    ablation : Ablation
    keeps : bool Tensor [V, L, H + 1]
    seed : int
        Base seed of the bootstrap over prompts.
    confidence, replicates
        Of the intervals.

    Returns
    -------
    DataFrame [V rows]
        ``nodes``, ``value`` (mean F(C)), ``full``, ``empty``; ``percent``: 100 F(C)/F(M), as published, and
        ``recovered``: 100 (F(C) - F(0))/(F(M) - F(0)), which is 0 for the empty and 100 for the full circuit; both as
        ratios of means with ``_low`` and ``_high``.
    """
    values = _values(ablation, torch.cat([ablation.full[None], 0 * ablation.full[None] > 0, keeps]))
    full, empty, inside = values[0], values[1], values[2:]
    options = {"seed": seed, "confidence": confidence, "replicates": replicates}
    percent = effect_rows(inside, full, **options)
    recovered = effect_rows(inside - empty, full - empty, **options)
    table = {"nodes": keeps.flatten(1).sum(1).numpy(), "value": inside.mean(1)}
    table |= {"full": full.mean(), "empty": empty.mean()}
    for name, rows in {"percent": percent, "recovered": recovered}.items():
        table |= {name: 100 * rows["effect"]}
        table |= {f"{name}_{end}": 100 * rows[end] for end in ("low", "high")}
    return pd.DataFrame(table)


def knock_outs(
    ablation: Ablation,
    keep: Tensor,
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Remove each node of a circuit (or of the full model) on its own.

    Returns
    -------
    DataFrame
        One row per node of ``keep``: ``component``, ``value`` (mean metric without it), ``drop`` in percent of F(M)
        with ``low``, ``high``, ``p`` and ``p_fdr``, the largest drop first.
    """
    sets = without_each(keep)
    ablation.rebase(keep)
    values = _values(ablation, torch.cat([ablation.full[None], keep[None], sets]))
    full, inside, without = values[0], values[1], values[2:]
    rows = effect_rows(
        inside - without, full, seed=seed, confidence=confidence, replicates=replicates
    )
    table = pd.DataFrame({"component": Graph.of(ablation.model.config).names(keep)})
    table["value"] = without.mean(1)
    for name, column in {"drop": "effect", "low": "low", "high": "high"}.items():
        table[name] = 100 * rows[column]
    table[["p", "p_fdr"]] = rows[["p", "p_fdr"]]
    return table.sort_values("drop", ascending=False, kind="stable", ignore_index=True)


def completeness(
    ablation: Ablation, keep: Tensor, *, seed: int, samples: int = 20, depth: int = 5
) -> pd.DataFrame:
    """Compare circuit and model after the same nodes K of the circuit are removed from both.

    K is each single node, the circuit's nodes of each layer, random halves of the circuit, and a greedy sequence that
    adds whichever node raises the gap most.

    Parameters
    ----------
    ablation : Ablation
    keep : bool Tensor [L, H + 1]
    seed : int
    samples : int
        Random halves.
    depth : int
        Length of the greedy sequence.

    Returns
    -------
    DataFrame
        ``kind`` (single, layer, random, greedy), ``removed`` (names of K), ``circuit`` F(C without K), ``model``
        F(M without K), and ``incompleteness``, their absolute difference in percent of F(M), the largest first.
    """
    graph, scale = (
        Graph.of(ablation.model.config),
        float(_values(ablation, ablation.full[None]).mean()),
    )
    removed, kinds = _removed_sets(keep, samples, rng_for(seed, "completeness"))
    both = _both(ablation, keep, removed)
    chosen = torch.zeros_like(keep)
    for _ in range(min(depth, int(keep.sum()))):
        further = ~without_each(~chosen, (keep & ~chosen).flatten().nonzero()[:, 0])
        pair = _both(ablation, keep, further)
        best = int(np.abs(pair[0] - pair[1]).argmax())
        chosen = further[best]
        removed, kinds = torch.cat([removed, chosen[None]]), [*kinds, "greedy"]
        both = np.concatenate([both, pair[:, best : best + 1]], axis=1)
    table = pd.DataFrame(
        {
            "kind": kinds,
            "removed": [" ".join(graph.names(x.numpy())) for x in removed],
            "circuit": both[0],
            "model": both[1],
            "incompleteness": 100 * np.abs(both[0] - both[1]) / abs(scale),
        }
    )
    return table.sort_values("incompleteness", ascending=False, kind="stable", ignore_index=True)


def minimality(ablation: Ablation, keep: Tensor, *, seed: int, samples: int = 10) -> pd.DataFrame:
    """Measure what each node adds: alone, and after the removal of the set K that makes it matter most.

    Parameters
    ----------
    ablation : Ablation
    keep : bool Tensor [L, H + 1]
    seed : int
    samples : int
        Random subsets of the circuit that are tried as K, besides the empty one.

    Returns
    -------
    DataFrame
        ``component``; ``alone``: F(C) - F(C without v); ``largest``: the same after removal of K, in absolute value
        and for the K in which it is largest (both in percent of F(M)); ``removed``: that K. The least needed first.
    """
    graph, rng = Graph.of(ablation.model.config), rng_for(seed, "minimality")
    scale = float(_values(ablation, ablation.full[None]).mean())
    nodes = keep.flatten().nonzero()[:, 0]
    halves = _random_halves(keep, samples, rng)
    bases = torch.cat([keep[None], keep & ~halves])
    without = torch.stack([without_each(base, nodes) for base in bases])
    ablation.rebase(keep)
    before = _values(ablation, bases).mean(1)
    after = _values(ablation, without.flatten(0, 1)).mean(1).reshape(len(bases), len(nodes))
    lost = 100 * (before[:, None] - after) / scale
    best = np.abs(lost).argmax(0)
    table = pd.DataFrame(
        {
            "component": graph.names(keep.numpy()),
            "alone": lost[0],
            "largest": np.abs(lost).max(0),
            "removed": [" ".join(graph.names((keep & ~bases[b]).numpy())) for b in best],
        }
    )
    return table.sort_values("largest", kind="stable", ignore_index=True)


def _values(ablation: Ablation, keeps: Tensor) -> np.ndarray:
    return ablation.values(keeps).double().cpu().numpy()


def _both(ablation: Ablation, keep: Tensor, removed: Tensor) -> np.ndarray:
    """Return mean metrics of circuit and model without sets of nodes, ``[2, K]``."""
    ablation.rebase(keep)
    circuit = _values(ablation, keep & ~removed).mean(1)
    ablation.rebase(ablation.full)
    return np.stack([circuit, _values(ablation, ~removed).mean(1)])


def _removed_sets(keep: Tensor, samples: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    single = ~without_each(torch.ones_like(keep), keep.flatten().nonzero()[:, 0])
    used = keep.any(1).nonzero()[:, 0]
    layers = torch.zeros(len(used), *keep.shape, dtype=torch.bool)
    layers[torch.arange(len(used)), used] = keep[used]
    halves = _random_halves(keep, samples, rng)
    kinds = ["single"] * len(single) + ["layer"] * len(layers) + ["random"] * len(halves)
    return torch.cat([single, layers, halves]), kinds


def _random_halves(keep: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return random subsets with each node of the circuit in one with probability one half, ``[count, L, H + 1]``."""
    return torch.from_numpy(rng.random((count, *keep.shape)) < 0.5) & keep
