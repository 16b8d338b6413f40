"""One page for one attribution graph: interactive, whole in a single HTML file, without a request to anywhere.

The chart is drawn by Apache ECharts (Apache License 2.0), which the page carries. All texts of the graph are data,
never markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from mechatlas.circuits.graphs.graph import (
    ATTENTION_BIAS,
    BOS_OUTPUT,
    DECODER_BIAS,
    ERROR,
    FEATURE,
    KINDS,
    LOGIT,
    POSITION,
    READER_BIAS,
    TOKEN,
    AttributionGraph,
)
from mechatlas.circuits.graphs.influence import Pruned
from mechatlas.circuits.graphs.public_json import public_id
from mechatlas.circuits.graphs.supernodes import Supernodes
from mechatlas.figures.html import escape, visible_characters

SHOWN = {
    FEATURE: ("feature", "circle", "--feature"),
    ERROR: ("reconstruction error", "diamond", "--error"),
    TOKEN: ("token embedding", "rect", "--token"),
    POSITION: ("position embedding", "triangle", "--constant"),
    BOS_OUTPUT: ("MLP output at BOS", "triangle", "--constant"),
    ATTENTION_BIAS: ("attention bias", "triangle", "--constant"),
    DECODER_BIAS: ("decoder bias", "triangle", "--constant"),
    READER_BIAS: ("bias of readers", "triangle", "--constant"),
    LOGIT: ("logit", "roundRect", "--logit"),
}
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def viewer_page(
    graph: AttributionGraph,
    pruned: Pruned,
    texts: Sequence[str],
    *,
    title: str,
    slug: str,
    share: float = 0.8,
    supernodes: Supernodes | None = None,
    labels: Mapping[int, str] | None = None,
    vocabulary: Mapping[int, str] | None = None,
    details: Mapping[int, Mapping[str, Any]] | None = None,
    facts: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    graph, pruned
        Kept nodes and edges are shown.
    texts : sequence of str
        The prompt's tokens.
    title, slug : str
        Heading; name of exported files.
    share : float
        Influence up to which nodes are shown at first (all kept ones can be).
    supernodes : dict, optional
    labels : mapping of int to str, optional
        Explanations of nodes.
    vocabulary : mapping of int to str, optional
        Texts of the tokens of logits.
    details : mapping of int to mapping, optional
        For feature nodes ``examples`` (list of ``tokens`` and ``values``), ``up`` and ``down`` (lists of text and
        value: promoted and suppressed logits) and ``note``.
    facts : sequence of str
        Lines below the heading.
    """
    kept = np.flatnonzero(pruned.nodes)
    place = {int(node): i for i, node in enumerate(kept)}
    texts = [visible_characters(text) for text in texts]
    names = _names(graph, kept, texts, labels or {}, vocabulary or {})
    edges = pruned.edges.tocoo()
    data = {
        "slug": slug,
        "tokens": texts,
        "layers": int(graph.facts["layers"]),
        "share": share,
        "kinds": [
            {"name": KINDS[kind], "title": title_, "symbol": symbol, "colour": colour}
            for kind, (title_, symbol, colour) in SHOWN.items()
            if (graph.kind[kept] == kind).any()
        ],
        "nodes": [
            _node(graph, pruned, int(node), names[i]) | {"short": _short(names[i])}
            for i, node in enumerate(kept)
        ],
        "links": [
            [place[s], place[t], float(f"{w:.6g}")]
            for t, s, w in zip(edges.row.tolist(), edges.col.tolist(), edges.data, strict=True)
            if s in place and t in place
        ],
        "supernodes": {
            visible_characters(name): [place[node] for node in members if node in place]
            for name, members in (supernodes or {}).items()
        },
        "details": {
            public_id(graph, node): _visible(detail)
            for node, detail in (details or {}).items()
            if node in place
        },
    }
    return _page(title, facts, data)


def _page(title: str, facts: Sequence[str], data: Mapping[str, Any]) -> str:
    folder = files("mechatlas.figures")
    library = (folder / "vendor" / "echarts" / "echarts.min.js").read_text(encoding="utf-8")
    style, script = (
        (folder / f"graph_viewer.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    # "<" would let a token end the element; as an escape it is the same text to the parser of JSON.
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    lines = "".join(f"<p>{escape(line)}</p>" for line in facts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{lines}</header>
<div id="controls">
<label>influence up to <input id="share" type="range" min="0.05" max="1" step="0.01">
<output id="share-value"></output></label>
<label>edges <input id="edges" type="range" min="1" step="1"> <output id="edges-value"></output></label>
<label><input id="grouped" type="checkbox"> draw supernodes as one</label>
<span id="kinds"></span>
<label>find <input id="find" list="names" size="16"></label><datalist id="names"></datalist>
<span><button id="png" type="button">PNG</button><button id="svg" type="button">SVG</button>
<button id="save" type="button">Save view</button>
<label>load view <input id="load" type="file" accept=".json"></label></span>
<span id="count" role="status"></span>
</div>
<main><div id="chart" role="img" aria-label="attribution graph; the panel lists nodes and edges as text"></div>
<aside id="panel" aria-live="polite"></aside></main>
<script type="application/json" id="graph-data">{embedded}</script>
<script>{library}</script>
<script>
{script}</script>
</body>
</html>
"""


def _node(graph: AttributionGraph, pruned: Pruned, node: int, name: str) -> dict[str, Any]:
    kind, layer, position = (
        int(getattr(graph, column)[node]) for column in ("kind", "layer", "position")
    )
    share, strength = float(pruned.node_share[node]), float(pruned.influence[node])
    largest = max(float(pruned.influence.max()), 1e-30)
    return {
        "id": public_id(graph, node),
        "kind": KINDS[kind],
        "label": name,
        "row": layer if kind not in (TOKEN, POSITION, READER_BIAS) else -1,
        "column": position,
        "value": float(f"{graph.value[node]:.6g}") if kind in (FEATURE, LOGIT) else None,
        "share": None if kind == LOGIT else round(share, 6),
        "fixed": kind in (TOKEN, LOGIT),
        "size": 1.0 if kind == LOGIT else round((strength / largest) ** 0.5, 4),
    }


def _names(
    graph: AttributionGraph,
    kept: np.ndarray,
    texts: Sequence[str],
    labels: Mapping[int, str],
    vocabulary: Mapping[int, str],
) -> list[str]:
    names = []
    for node in kept.tolist():
        kind, layer, position, feature = (
            int(getattr(graph, column)[node]) for column in ("kind", "layer", "position", "feature")
        )
        where = f" at {texts[position]!r} ({position})" if position >= 0 else ""
        if kind == FEATURE:
            name = f"L{layer}/F{feature}{where}"
        elif kind == LOGIT:
            known = vocabulary.get(feature, f"token {feature}")
            name = f"logit {known!r}" if feature >= 0 else graph.labels.get(node, "target")
        else:
            name = f"{SHOWN[kind][0]}{f' L{layer}' if layer >= 0 else ''}{where}"
        if node in labels:
            name = f"{name}: {labels[node]}"
        names.append(visible_characters(name))
    return names


def _short(name: str) -> str:
    """Return what stands beside a target: its token, without the word logit."""
    return name.removeprefix("logit ")


def _visible(value: Any) -> Any:
    """Spell out hidden characters in all texts of a value."""
    if isinstance(value, str):
        return visible_characters(value)
    if isinstance(value, Mapping):
        return {key: _visible(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(one) for one in value]
    return value
