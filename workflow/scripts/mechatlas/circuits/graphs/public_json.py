"""The public attribution-graph JSON (Anthropic's front end, Neuronpedia, circuit-tracer): written and read.

Ids of features, tokens and logits are those of the schema (``layer_feature_position``, ``E_token_position``,
``layers+1_token_position``). An error is ``error_layer_position``: the ``0_layer_position`` of other tools is also the
id of a feature of layer 0. Node kinds that the schema lacks (positions, biases, outputs at the BOS position) are
written if asked for, as ``bias``. A feature's number ``feature`` is the Cantor pairing of layer and index, by which
front ends look it up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from mechatlas.circuits.graphs.graph import (
    ERROR,
    FEATURE,
    KINDS,
    LOGIT,
    SHARED,
    TOKEN,
    AttributionGraph,
    node_name,
)
from mechatlas.circuits.graphs.influence import Pruned
from mechatlas.circuits.graphs.supernodes import Supernodes
from mechatlas.io import UserError, read_json

FEATURE_TYPES = {
    FEATURE: "cross layer transcoder",
    ERROR: "mlp reconstruction error",
    TOKEN: "embedding",
    LOGIT: "logit",
}
OTHER = "bias"
SCHEMA_VERSION = 1


def to_public(
    graph: AttributionGraph,
    pruned: Pruned,
    texts: Sequence[str],
    *,
    slug: str,
    scan: str = "local",
    node_threshold: float = 0.8,
    supernodes: Supernodes | None = None,
    labels: Mapping[int, str] | None = None,
    vocabulary: Mapping[int, str] | None = None,
    extra: bool = False,
) -> dict[str, Any]:
    """Return the kept nodes and edges in the public schema.

    Parameters
    ----------
    graph, pruned
    texts : sequence of str
        The prompt's tokens as text.
    slug, scan : str
        Name of the graph; name under which front ends look for features.
    node_threshold : float
        By which the graph was pruned.
    supernodes : dict, optional
    labels : mapping of int to str, optional
        Explanations of feature nodes.
    vocabulary : mapping of int to str, optional
        Texts of the tokens of logits.
    extra : bool
        Also write nodes of kinds that the schema does not know.
    """
    ids = {
        int(node): public_id(graph, int(node))
        for node in np.flatnonzero(pruned.nodes)
        if extra or graph.kind[node] in SHARED
    }
    edges = pruned.edges.tocoo()
    links = [
        {"source": ids[s], "target": ids[t], "weight": float(w)}
        for t, s, w in zip(edges.row.tolist(), edges.col.tolist(), edges.data, strict=True)
        if s in ids and t in ids
    ]
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": list(texts),
            "prompt": "".join(texts),
            "node_threshold": node_threshold,
            "schema_version": SCHEMA_VERSION,
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [
                [name, *(ids[node] for node in members if node in ids)]
                for name, members in (supernodes or {}).items()
            ],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            _node(graph, pruned, node, name, texts, labels or {}, vocabulary or {})
            for node, name in ids.items()
        ],
        "links": links,
    }


def public_id(graph: AttributionGraph, node: int) -> str:
    """Return the id of a node, which no other node of the graph has."""
    kind, layer, position, feature = (
        int(getattr(graph, column)[node]) for column in ("kind", "layer", "position", "feature")
    )
    if kind == FEATURE:
        return f"{layer}_{feature}_{position}"
    if kind == TOKEN:
        return f"E_{feature}_{position}"
    if kind == LOGIT:
        return f"{layer + 1}_{feature}_{position}" if feature >= 0 else f"target_{node}"
    return "_".join([KINDS[kind], *(str(place) for place in (layer, position) if place >= 0)])


def from_public(value: Mapping[str, Any] | str | Path) -> AttributionGraph:
    """Read a graph in the public schema, a file or its content, of this or another program.

    Totals and discarded sums are not part of the schema: rows get the sum of their edges.

    Raises
    ------
    UserError
        If the content is not such a graph: parts are missing, an id occurs twice, or an edge leads nowhere.
    """
    where = str(value) if isinstance(value, (str, Path)) else "the graph"
    raw = read_json(value) if isinstance(value, (str, Path)) else value
    try:
        nodes, links = list(raw["nodes"]), list(raw["links"])
        texts = raw["metadata"]["prompt_tokens"]
        parsed = [_parse(node) for node in nodes]
        order = sorted(range(len(nodes)), key=lambda i: (parsed[i][0], parsed[i][1], i))
        ends = [(link["target"], link["source"], float(link["weight"])) for link in links]
        ids = [nodes[i]["node_id"] for i in order]
        last = max((p[1] for p in parsed if p[0] == LOGIT), default=0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is no graph of the public schema ({type(error).__name__}: {error}); export it again"
        ) from error
    place = {name: i for i, name in enumerate(ids)}
    lost = sorted({name for t, s, _ in ends for name in (t, s)} - place.keys())
    if len(place) < len(ids) or lost:
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise UserError(
            f"{where}: {'ids that occur twice: ' + ', '.join(twice[:3]) if twice else 'no node ' + lost[0]}; "
            "export it again"
        )
    columns = np.array([parsed[i] for i in order], np.int64).reshape(len(order), 4)
    size = len(ids)
    data = [w for *_, w in ends], ([place[t] for t, *_ in ends], [place[s] for _, s, _ in ends])
    edges = csr_array(data, shape=(size, size), dtype=np.float64)
    kind = columns[:, 0].astype(np.int8)
    value_of = np.array([_value(nodes[i]) for i in order])
    total = np.where(np.isin(kind, (FEATURE, LOGIT)), np.asarray(edges.sum(1)).ravel(), np.nan)
    return AttributionGraph(
        kind,
        *(columns[:, i].astype(np.int32) for i in (1, 2, 3)),
        value=value_of,
        edges=edges,
        total=total,
        discarded=np.zeros(size),
        discarded_abs=np.zeros(size),
        labels={i: str(nodes[n]["clerp"]) for i, n in enumerate(order) if nodes[n].get("clerp")},
        tokens=np.full(len(texts), -1),
        facts={"layers": int(last), "slug": raw["metadata"].get("slug", "")},
    )


def cantor(layer: int, feature: int) -> int:
    """Return the number of a pair of numbers."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def uncantor(number: int) -> tuple[int, int]:
    """Return the pair of a number of `cantor`."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature


def _node(
    graph: AttributionGraph,
    pruned: Pruned,
    node: int,
    name: str,
    texts: Sequence[str],
    labels: Mapping[int, str],
    vocabulary: Mapping[int, str],
) -> dict[str, Any]:
    kind, layer, position, feature = (
        int(getattr(graph, column)[node]) for column in ("kind", "layer", "position", "feature")
    )
    weight = float(graph.value[node])
    clerp = labels.get(node, graph.labels.get(node, ""))
    if kind == LOGIT and feature >= 0:
        clerp = f'Output "{vocabulary.get(feature, feature)}" (p={weight:.3f})'
    elif kind == TOKEN:
        clerp = f'Emb: "{texts[position]}"'
    elif kind not in FEATURE_TYPES:
        clerp = node_name(graph, node)
    shown = {TOKEN: "E", LOGIT: str(layer + 1)}.get(kind, str(layer) if layer >= 0 else "E")
    return {
        "node_id": name,
        "feature": {FEATURE: cantor(layer, feature), ERROR: -1}.get(kind, feature),
        "layer": shown,
        "ctx_idx": max(position, 0),
        "feature_type": FEATURE_TYPES.get(kind, OTHER),
        "token_prob": weight if kind == LOGIT else 0.0,
        "is_target_logit": kind == LOGIT,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{name}-0",
        "clerp": clerp,
        "influence": float(pruned.node_share[node]) if kind != LOGIT else None,
        "activation": weight if kind == FEATURE else None,
    }


def _parse(node: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return kind, layer, position and feature of a public node."""
    kinds = {name: kind for kind, name in FEATURE_TYPES.items()}
    what, name, position = node["feature_type"], str(node["node_id"]), int(node["ctx_idx"])
    if what == OTHER:
        found = re.fullmatch(r"([a-z_]+?)((?:_\d+)*)", name)
        kind = KINDS.index(found[1]) if found and found[1] in KINDS else -1
        if kind < 0:
            raise ValueError(f"node {name!r} is of no known kind")
        places = [int(part) for part in found[2].split("_") if part]
        layered = KINDS[kind] in ("bos_output", "attention_bias", "decoder_bias")
        layer = places.pop(0) if layered else -1
        return kind, layer, places[0] if places else -1, -1
    if what not in kinds:
        raise ValueError(f"feature_type {what!r} of node {name!r} is not known")
    kind = kinds[what]
    if kind == FEATURE:
        layer, feature = uncantor(int(node["feature"]))
        return kind, layer, position, feature
    if kind == ERROR:
        return kind, int(node["layer"]), position, -1
    ids = re.fullmatch(r"[^_]+_(-?\d+)_\d+", name)
    token = int(ids[1]) if ids else -1
    return kind, -1 if kind == TOKEN else int(node["layer"]) - 1, position, token


def _value(node: Mapping[str, Any]) -> float:
    if node["feature_type"] == FEATURE_TYPES[LOGIT]:
        return float(node.get("token_prob") or 0)
    return float(node.get("activation") or 0)
