"""How well estimated edge scores agree with exact effects, overall and by what reads."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mechatlas.circuits.components import Graph
from mechatlas.circuits.edges import jaccard, kinds_of, top

TOP = (10, 100, 1000)


def agreement(graph: Graph, estimated: np.ndarray, exact: np.ndarray) -> list[dict]:
    """Compare two scores ``[S, D]`` of all edges.

    Returns
    -------
    list of dict
        One for all edges (``kind`` ``all``) and one per kind of destination (``q``, ``k``, ``v``, ``mlp``,
        ``logits``): ``edges``, ``pearson``, ``spearman`` (NaN where a score is constant). The first also has
        ``top``: size to Jaccard overlap of the strongest edges, for the sizes in `TOP` that the graph has.
    """
    rows, kinds = [], kinds_of(graph)
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        chosen = graph.edges if kind == "all" else graph.edges & (kinds == kind)
        a, b = estimated[chosen], exact[chosen]
        rows.append(
            {
                "kind": kind,
                "edges": len(a),
                "pearson": _correlation(a, b),
                "spearman": _correlation(_ranks(a), _ranks(b)),
            }
        )
    rows[0]["top"] = {
        n: jaccard(top(graph, estimated, n), top(graph, exact, n))
        for n in TOP
        if n <= graph.n_edges
    }
    return rows


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def _ranks(x: np.ndarray) -> np.ndarray:
    return pd.Series(x).rank().to_numpy()
