"""Graphs of several prompts of a task as one, with intervals for its edges.

A feature at one place of a prompt (a slot: a token role, or a position where prompts are aligned) is one node in all
prompts; an edge that a prompt lacks counts as 0 there. Prompts are resampled with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from mechatlas.circuits.graphs.graph import KINDS, LOGIT, TOKEN, AttributionGraph
from mechatlas.io import UserError, rng_for
from mechatlas.stats.bootstrap import document_weights

CONFIDENCE = 0.95
COLUMNS = ("source", "target", "mean", "low", "high", "prompts", "of_prompts")


def average_edges(
    graphs: Sequence[AttributionGraph],
    slots: Sequence[Sequence[Any]],
    *,
    seed: int,
    relative: bool = True,
    replicates: int = 1000,
    most: int = 1000,
) -> pd.DataFrame:
    """Average the edges of graphs.

    Parameters
    ----------
    graphs : sequence of AttributionGraph
        Of different prompts with the same targets in the same order.
    slots : sequence of sequences
        For each graph what each position is called, such as a role or an index.
    seed : int
    relative : bool
        Divide the edges of a row by their absolute sum, so that no prompt counts more for its larger logits.
    replicates, most : int
        Bootstrap replicates; edges that are kept, those of largest absolute mean.

    Returns
    -------
    DataFrame
        ``source`` and ``target`` (such as ``L3/F120@end``), ``mean``, ``low``, ``high`` (95 % bootstrap interval over
        prompts), ``prompts`` in which the edge is not 0, ``of_prompts``; by absolute mean. One prompt has no
        interval (NaN).

    Raises
    ------
    UserError
        If there are no graphs, or slots do not fit their prompts.
    """
    if not graphs or len(graphs) != len(slots):
        raise UserError(
            f"{len(graphs)} graphs and {len(slots)} lists of slots: give one list for each graph"
        )
    names: dict[str, int] = {}
    parts = [
        _named_edges(graph, slot, names, relative)
        for graph, slot in zip(graphs, slots, strict=True)
    ]
    size = len(names)
    table = csr_array(
        (
            np.concatenate([data for *_, data in parts]),
            (
                np.repeat(np.arange(len(graphs)), [len(part[0]) for part in parts]),
                np.concatenate([target.astype(np.int64) * size + source for target, source, _ in parts]),
            ),
        ),
        shape=(len(graphs), size * size),
    )  # fmt: skip
    table.sum_duplicates()
    columns, place = np.unique(table.indices, return_inverse=True)
    dense = csr_array((table.data, place, table.indptr), shape=(len(graphs), len(columns)))
    mean = np.asarray(dense.mean(0)).ravel()
    order = np.argsort(-np.abs(mean), kind="stable")[:most]
    values = dense[:, order].toarray()
    label = np.array(list(names))
    low, high = _interval(values, seed, replicates)
    return pd.DataFrame(
        dict(
            zip(
                COLUMNS,
                (
                    label[columns[order] % size],
                    label[columns[order] // size],
                    mean[order],
                    low,
                    high,
                    (values != 0).sum(0),
                    np.full(len(order), len(graphs)),
                ),
                strict=True,
            )
        )
    )


def slot_name(graph: AttributionGraph, node: int, slots: Sequence[Any]) -> str:
    """Return the name of a node in terms of slots; tokens are named by slot, targets by their order."""
    kind, layer, position, feature = (
        int(getattr(graph, column)[node]) for column in ("kind", "layer", "position", "feature")
    )
    if kind == LOGIT:
        return f"target {node - int(np.flatnonzero(graph.kind == LOGIT)[0])}"
    at = "" if position < 0 else f"@{slots[position]}"
    if kind == 0:
        return f"L{layer}/F{feature}{at}"
    return f"{KINDS[kind]}{'' if layer < 0 or kind == TOKEN else f'/L{layer}'}{at}"


def _named_edges(
    graph: AttributionGraph, slots: Sequence[Any], names: dict[str, int], relative: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets and sources (numbers of names) and weights of a graph's edges; new names are added."""
    if len(slots) != len(graph.tokens):
        raise UserError(f"{len(slots)} slots do not fit a prompt of {len(graph.tokens)} tokens")
    index = np.array(
        [names.setdefault(slot_name(graph, node, slots), len(names)) for node in range(len(graph))]
    )
    edges = graph.edges.tocoo()
    data = edges.data.astype(np.float64)
    if relative:
        sums = np.bincount(edges.row, np.abs(data), minlength=len(graph)) + graph.discarded_abs
        data = data / np.maximum(sums, 1e-30)[edges.row]
    return index[edges.row], index[edges.col], data


def _interval(values: np.ndarray, seed: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    prompts = len(values)
    if prompts < 2:
        missing = np.full(values.shape[1], np.nan)
        return missing, missing
    weights = document_weights(prompts, replicates, rng_for(seed, "average_edges"))[1:]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(weights @ values / prompts, [tail, 1 - tail], axis=0)
    return low, high
