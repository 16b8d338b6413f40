"""Does the graph say what happens? Its strongest edges and nodes against interventions in the model.

Each source feature is set to 0. An edge predicts the change of its target, the other features held; a node's
influence over all paths predicts the change of a logit, as if features were linear in what they read: a feature whose
pre-activation falls by a share loses that share of its activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from mechatlas.circuits.graphs.graph import FEATURE, LOGIT, AttributionGraph, node_name
from mechatlas.circuits.graphs.influence import Pruned
from mechatlas.circuits.graphs.interventions import Intervention, Outcome, intervene
from mechatlas.circuits.graphs.run import LocalRun
from mechatlas.circuits.graphs.targets import Target

VARIANTS = 16  # runs in one batch
KINDS = {
    "edge": {"frozen": ("frozen", "constant"), "free": ("free", "model")},
    "node": {"frozen": ("frozen", "features"), "free": ("free", "model")},
}


def consistency_table(
    run: LocalRun,
    graph: AttributionGraph,
    targets: Sequence[Target],
    pruned: Pruned,
    *,
    edges: int = 40,
    nodes: int = 20,
) -> pd.DataFrame:
    """Compare predicted with measured changes.

    Parameters
    ----------
    run, graph, targets
        The graph of the run and these targets.
    pruned : Pruned
        Edges and nodes are taken from it, the strongest first.
    edges, nodes : int
        How many at most.

    Returns
    -------
    DataFrame
        ``kind`` (edge, node), ``source``, ``target`` (names), ``predicted``, ``measured_frozen`` (edges: other features
        constant; nodes: features follow; attention and norms frozen in both), ``measured_free`` (the model's own
        attention, norms and MLPs), all as changes of the target's pre-activation or logit.
    """
    pairs = [("edge", *pair) for pair in _strongest_edges(graph, pruned, edges)]
    total = total_effects(graph)
    pairs += [("node", node, target) for node, target in _strongest_nodes(graph, pruned, nodes)]
    rows = []
    for kind, modes in KINDS.items():
        chosen = [(source, target) for one, source, target in pairs if one == kind]
        measured = {
            name: _measure(run, graph, targets, chosen, *choice) for name, choice in modes.items()
        }
        effects = graph.edges if kind == "edge" else total
        for i, (source, target) in enumerate(chosen):
            row = {
                "kind": kind,
                "source": node_name(graph, source),
                "target": node_name(graph, target),
            }
            row["predicted"] = -float(effects[target, source])
            rows.append(row | {f"measured_{name}": values[i] for name, values in measured.items()})
    columns = ["kind", "source", "target", "predicted", "measured_frozen", "measured_free"]
    return pd.DataFrame(rows, columns=columns)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise a table: for each kind and measurement the number of rows, the correlation of predicted and measured,
    the slope of measured on predicted (through 0), and the share with the same sign; NaN where they do not exist."""
    rows = []
    for kind, part in table.groupby("kind", sort=True):
        for name in ("measured_frozen", "measured_free"):
            x, y = part["predicted"].to_numpy(), part[name].to_numpy()
            spread = len(x) > 1 and x.std() > 0 and y.std() > 0
            rows.append(
                {
                    "kind": kind,
                    "measured": name.removeprefix("measured_"),
                    "rows": len(part),
                    "correlation": float(np.corrcoef(x, y)[0, 1]) if spread else float("nan"),
                    "slope": float(x @ y / (x @ x)) if (x @ x) > 0 else float("nan"),
                    "same_sign": float((np.sign(x) == np.sign(y)).mean()),
                }
            )
    return pd.DataFrame(rows)


def total_effects(graph: AttributionGraph) -> csr_array:
    """Return the effect of every node on every target over all paths, csr_array [M, M]; rows of targets only.

    ``E = A + A_f diag(1 / h) E``: what reaches a feature changes it by the share of its pre-activation h.
    """
    features = (graph.kind == FEATURE) & (graph.total != 0)
    share = np.zeros(len(graph))
    share[features] = 1 / graph.total[features]
    logits = diags_array((graph.kind == LOGIT).astype(float))
    through = csr_array(diags_array(share) @ graph.edges)
    step = csr_array(logits @ graph.edges)
    total = step
    while step.nnz:
        step = csr_array(step @ through)
        step.eliminate_zeros()
        total = total + step
    return csr_array(total)


def _strongest_edges(graph: AttributionGraph, pruned: Pruned, most: int) -> list[tuple[int, int]]:
    """Return sources and targets of the kept edges from features, by absolute weight."""
    edges = pruned.edges.tocoo()
    keep = graph.kind[edges.col] == FEATURE
    order = np.argsort(-np.abs(edges.data[keep]), kind="stable")[:most]
    return [(int(edges.col[keep][i]), int(edges.row[keep][i])) for i in order]


def _strongest_nodes(graph: AttributionGraph, pruned: Pruned, most: int) -> list[tuple[int, int]]:
    """Return the kept features with the largest influence, each with the target of largest weight."""
    features = np.flatnonzero(pruned.nodes & (graph.kind == FEATURE))
    order = features[np.argsort(-pruned.influence[features], kind="stable")][:most]
    target = int(np.argmax(graph.target_weights))
    return [(int(node), target) for node in order]


def _measure(
    run: LocalRun,
    graph: AttributionGraph,
    targets: Sequence[Target],
    pairs: Sequence[tuple[int, int]],
    attention: str,
    mlps: str,
) -> list[float]:
    """Set each source to 0 and return how its target changes."""
    sources = sorted({source for source, _ in pairs})
    changes: dict[int, tuple[Outcome, int]] = {}
    for first in range(0, len(sources), VARIANTS):
        part = sources[first : first + VARIANTS]
        variants = [[], *([_ablation(graph, source)] for source in part)]
        outcome = intervene(run, variants, attention=attention, mlps=mlps)
        changes |= {source: (outcome, i + 1) for i, source in enumerate(part)}
    return [_moved(run, graph, targets, target, *changes[source]) for source, target in pairs]


def _ablation(graph: AttributionGraph, node: int) -> Intervention:
    return Intervention(
        int(graph.layer[node]), int(graph.feature[node]), int(graph.position[node]), 0.0
    )


def _moved(
    run: LocalRun,
    graph: AttributionGraph,
    targets: Sequence[Target],
    node: int,
    outcome: Outcome,
    variant: int,
) -> float:
    """Return the change of a node's pre-activation or logit against the run without a change."""
    layer, position = int(graph.layer[node]), int(graph.position[node])
    if graph.kind[node] == LOGIT:
        vector: Tensor = targets[node - (len(graph) - len(targets))].vector
        values = outcome.final[:, -1]
    else:
        vector = run.clt.encoder[layer][int(graph.feature[node])]
        values = outcome.read[layer][:, position]
    return float(torch.dot(values[variant] - values[0], vector))
