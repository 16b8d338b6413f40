"""Drawings of circuits as graphs: layers from the bottom to the top, edges upward, as wide as they matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import NEGATIVE, POSITIVE, no_data, task_colours
from mechatlas.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Up to this many edges are drawn, the strongest.
MOST_EDGES = 160
KINDS = {
    "q": (BLUE, "into a query"),
    "k": (ORANGE, "into a key"),
    "v": (GREEN, "into a value"),
    "mlp": (PURPLE, "into an MLP"),
    "logits": (BLACK, "into the logits"),
}
COLUMN, ROW = 0.78, 0.62  # inches between nodes of a row, and between rows
BOX, TALL = 0.60, 0.25  # inches of a node
LEFT, RIGHT = 1.35, 1.2  # inches for the names of rows, and for edges beyond the MLPs
SWEEPS = 6
_NAME = re.compile(r"L(\d+)\.(?:(H|KV)(\d+)|mlp)")


@dataclass(frozen=True)
class Layout:
    """Where nodes are, in inches.

    Attributes
    ----------
    place : mapping of str to (float, float)
        Middle of each node.
    rows : tuple of (str, float)
        Name and height of each row.
    width, height : float
    """

    place: Mapping[str, tuple[float, float]]
    rows: tuple[tuple[str, float], ...]
    width: float
    height: float


def edge_rows(names: Iterable[str], effects: pd.DataFrame | None = None) -> pd.DataFrame:
    """Take the names of edges apart.

    Parameters
    ----------
    names : iterable of str
        Such as ``L1.H2 -> L3.H5.q``.
    effects : data frame, optional
        ``source``, ``destination``, ``score`` of one method.

    Returns
    -------
    data frame
        ``source``, ``destination``, ``node`` (that reads), ``kind`` (q, k, v, mlp, logits), ``score`` (NaN if not
        known).
    """
    table = pd.DataFrame(
        [name.split(" -> ") for name in names], columns=["source", "destination"], dtype=object
    )
    input_of = table["destination"].str.extract(r"^(.*?)(?:\.([qkv]))?$")
    table["node"] = input_of[0]
    ends = table["destination"].str.rpartition(".")[2]
    table["kind"] = input_of[1].where(input_of[1].notna(), ends)
    if effects is None:
        return table.assign(score=np.nan)
    scores = effects[["source", "destination", "score"]]
    return table.merge(scores, on=["source", "destination"], how="left")


def strongest(edges: pd.DataFrame, most: int = MOST_EDGES) -> pd.DataFrame:
    """Return the edges with the largest absolute scores, in the order of the table."""
    order = edges["score"].abs().fillna(0).sort_values(ascending=False, kind="stable").index
    return edges.loc[sorted(order[:most])].reset_index(drop=True)


@styled
def circuit_graph(edges: pd.DataFrame, *, inputs: bool, most: int = MOST_EDGES) -> Figure:
    """Draw the edges of a circuit between embedding, heads, MLPs and logits.

    Parameters
    ----------
    edges : data frame
        From `edge_rows`; widths are absolute scores.
    inputs : bool
        Whether heads have a query, a key and a value input of their own, and edges the colour of what reads; else all
        edges into a head go to the head, and edges have the colour of their sign (a negative score helps).
    most : int
        Only the strongest edges are drawn.
    """
    shown = strongest(edges, most)
    if not inputs:
        shown = _merged(shown)
    layout = _layout(
        [*shown["source"], *shown["node"]], zip(shown["source"], shown["node"], strict=True)
    )
    figure, axes = _canvas(layout)
    if shown.empty:
        no_data(axes, "no edges")
        return figure
    most_score = float(shown["score"].abs().max())
    unit = most_score if np.isfinite(most_score) and most_score > 0 else 1.0
    weights = (shown["score"].abs() / unit).fillna(0.5).to_numpy(float)
    for i in np.argsort(weights, kind="stable"):
        edge = shown.iloc[i]
        colour = KINDS[edge["kind"]][0] if inputs else _sign_colour(edge["score"])
        start, end = layout.place[edge["source"]], layout.place[edge["node"]]
        port = _port(edge["kind"]) if inputs else 0.0
        harms = bool(inputs and edge["score"] > 0)
        _arrow(axes, start, (end[0] + port, end[1]), colour, weights[i], dashed=harms)
    for name, place in layout.place.items():
        _box(axes, name, place)
    if inputs:
        _ports(axes, layout, shown)
        kinds = [k for k in KINDS if (shown["kind"] == k).any()]
        _legend(figure, [(KINDS[k][0], KINDS[k][1]) for k in kinds])
    else:
        _legend(figure, [(POSITIVE, "helps"), (NEGATIVE, "works against the answer")])
    return figure


@styled
def overlay_graph(
    nodes: Mapping[str, Sequence[str]],
    edges: Mapping[str, pd.DataFrame] | None = None,
    *,
    most: int = MOST_EDGES,
) -> Figure:
    """Draw the circuits of several tasks over each other.

    A node has a stripe in the colour of each task that it belongs to, and a heavy frame if it belongs to all. Edges
    have the colour of their task; those of several tasks are grey, those of all tasks black.

    Parameters
    ----------
    nodes : mapping of str to sequence of str
        Task to names of heads and MLPs.
    edges : mapping of str to data frame, optional
        Task to `edge_rows`; an edge is drawn where both of its ends are in the circuits' nodes.
    most : int
        Strongest edges of each task that are drawn.
    """
    tasks = list(nodes)
    colours = task_colours(tasks)
    members = {
        name: [t for t in tasks if name in nodes[t]]
        for name in sorted({n for t in tasks for n in nodes[t]}, key=_order)
    }
    drawn = _task_edges(tasks, edges or {}, set(members), most)
    layout = _layout(list(members), drawn)
    figure, axes = _canvas(layout)
    if not members:
        no_data(axes, "no nodes")
        return figure
    for (source, node), owners in drawn.items():
        colour = colours[owners[0]] if len(owners) == 1 else GREY
        everywhere = len(owners) == len(tasks) > 1
        _arrow(
            axes, layout.place[source], layout.place[node], BLACK if everywhere else colour,
            0.5 if everywhere else 0.25 if len(owners) > 1 else 0.15,
        )  # fmt: skip
    for name, owners in members.items():
        _striped(
            axes, name, layout.place[name], [colours.get(t) if t in owners else None for t in tasks]
        )
    _legend(figure, [(colours[t], t) for t in tasks], patches=True)
    return figure


def _task_edges(
    tasks: Sequence[str], edges: Mapping[str, pd.DataFrame], known: set[str], most: int
) -> dict[tuple[str, str], list[str]]:
    """Return who has which edge between known nodes."""
    owners: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        if task not in edges:
            continue
        inside = edges[task][edges[task]["source"].isin(known) & edges[task]["node"].isin(known)]
        merged = strongest(_merged(inside), most)
        for pair in zip(merged["source"], merged["node"], strict=True):
            owners.setdefault(pair, []).append(task)
    return dict(sorted(owners.items(), key=lambda item: (len(item[1]), item[0])))


def _merged(edges: pd.DataFrame) -> pd.DataFrame:
    """Add up the scores of edges between the same two nodes."""
    if edges.empty:
        return edges
    sums = edges.groupby(["source", "node"], sort=False)["score"].sum(min_count=1)
    return sums.reset_index().assign(kind="head")


# --- layout ---------------------------------------------------------------------------------------


def _row(name: str) -> tuple[int, int]:
    """Return layer and part (shared keys and values, heads, MLP) of the row of a node."""
    if name == "embed":
        return -1, 0
    match = _NAME.fullmatch(name)
    if match is None:
        return 10**6, 0
    return int(match[1]), {"KV": 0, "H": 1, None: 2}[match[2]]


def _order(name: str) -> tuple[int, int, int]:
    match = _NAME.fullmatch(name)
    return *_row(name), int(match[3]) if match and match[3] else 0


def _row_name(row: tuple[int, int]) -> str:
    if row[0] < 0 or row[0] >= 10**6:
        return ""
    return f"layer {row[0]}" + {0: ", keys and values", 1: "", 2: ", MLP"}[row[1]]


def _layout(names: Iterable[str], edges: Iterable[tuple[str, str]]) -> Layout:
    """Put heads into the rows of their layers, each near the mean place of its neighbours, and MLPs into a column.

    Rows of few heads are shifted against each other, so that edges do not run behind nodes.
    """
    unique = sorted(set(names), key=_order)
    keys = sorted({_row(name) for name in unique})
    rows = [[name for name in unique if _row(name) == key] for key in keys]
    slots = max(4, *(len(row) for row in rows)) if rows else 4
    near: dict[str, list[str]] = {name: [] for name in unique}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    x: dict[str, float] = {}
    for number, row in enumerate(rows):
        x |= dict(zip(row, _spread(row, number, slots), strict=True))
    for _ in range(SWEEPS):
        for number, row in enumerate(rows):
            wanted = {n: np.mean([x[m] for m in near[n]]) if near[n] else x[n] for n in row}
            ordered = sorted(row, key=lambda n: (wanted[n], _order(n)))
            x |= dict(zip(ordered, _spread(row, number, slots), strict=True))
    heights = {key: 0.45 + i * ROW for i, key in enumerate(keys)}
    place = {name: (LEFT + COLUMN * x[name], heights[_row(name)]) for name in unique}
    return Layout(
        place,
        tuple((_row_name(key), heights[key]) for key in keys),
        LEFT + (slots + 1) * COLUMN + RIGHT,
        0.9 + ROW * max(1, len(keys) - 1),
    )


def _spread(row: Sequence[str], number: int, slots: int) -> list[float]:
    """Return the places of the nodes of a row among the slots for heads, or beyond them for an MLP."""
    if row[0].endswith("mlp"):
        return [slots + 0.8] * len(row)
    if len(row) == 1 and row[0] not in ("embed", "logits"):
        return [0.5 + (slots - 1) * (number * 0.382 % 1)]
    free = (slots - len(row)) / len(row)
    shift = min(0.25, free / 2) * (1 if number % 2 else -1) if len(row) > 1 else 0.0
    return [(i + 0.5) * slots / len(row) + shift for i in range(len(row))]


# --- marks ----------------------------------------------------------------------------------------


def _canvas(layout: Layout) -> tuple[Figure, Axes]:
    figure, axes = new_figure(layout.width, layout.height + 0.35)
    axes.set(xlim=(0, layout.width), ylim=(0, layout.height), aspect="equal")
    axes.axis("off")
    for name, height in layout.rows:
        axes.text(0.05, height, name, fontsize=7.5, va="center", color=GREY)
        axes.axhline(height, color="#f0f0f0", linewidth=0.8, zorder=0)
    return figure, axes


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    weight: float,
    *,
    dashed: bool = False,
) -> None:
    """Draw an edge from the top of one node to the bottom of another, in a curve that keeps clear of nodes between."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = (start[0], start[1] + TALL / 2), (end[0], end[1] - TALL / 2 - 0.05)
    bend = max(0.16, 0.4 * (y1 - y0))
    long = max(0.0, (y1 - y0) / ROW - 0.5)
    if abs(x1 - x0) < 0.5 * COLUMN and long > 0.5:
        # In one column: around what lies between, the further the longer.
        aside = 0.55 + 0.2 * np.sqrt(long)
        ends = x0 + aside, x1 + aside
    elif long > 0.5:
        lean = np.sign(x1 - x0) * min(0.6, 0.3 * abs(x1 - x0))
        ends = x0 + lean, x1 - lean
    else:
        ends = x0, x1
    points = [(x0, y0), (ends[0], y0 + bend), (ends[1], y1 - bend), (x1, y1)]
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(
        PathPatch(
            path, fill=False, edgecolor=colour, linewidth=0.5 + 3.5 * weight,
            alpha=0.35 + 0.55 * weight, linestyle="--" if dashed else "-", capstyle="butt", zorder=1 + weight,
        )
    )  # fmt: skip


def _box(axes: Axes, name: str, place: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    mlp = name.endswith("mlp")
    ends = name in ("embed", "logits")
    axes.add_patch(
        FancyBboxPatch(
            (place[0] - BOX / 2, place[1] - TALL / 2), BOX, TALL, boxstyle="round,pad=0,rounding_size=0.05",
            facecolor="#ece7f2" if mlp else "#e8e8e8" if ends else "white", edgecolor=BLACK, linewidth=0.9, zorder=4,
        )
    )  # fmt: skip
    _write(axes, name, place)


def _striped(
    axes: Axes, name: str, place: tuple[float, float], stripes: Sequence[str | None]
) -> None:
    from matplotlib.patches import Rectangle

    left, bottom = place[0] - BOX / 2, place[1] - TALL / 2
    part = BOX / len(stripes)
    axes.add_patch(Rectangle((left, bottom), BOX, TALL, facecolor="white", linewidth=0, zorder=3.9))
    for i, colour in enumerate(stripes):
        if colour is not None:
            axes.add_patch(
                Rectangle(
                    (left + i * part, bottom), part, 0.075, facecolor=colour, linewidth=0, zorder=4
                )
            )
    everywhere = all(colour is not None for colour in stripes)
    axes.add_patch(
        Rectangle(
            (left, bottom), BOX, TALL, fill=False, edgecolor=BLACK,
            linewidth=2.2 if everywhere and len(stripes) > 1 else 0.8, zorder=4.2,
        )
    )  # fmt: skip
    _write(axes, name, (place[0], place[1] + 0.035))


def _write(axes: Axes, name: str, place: tuple[float, float]) -> None:
    words = name.replace(".mlp", ".MLP")
    style = {"ha": "center", "va": "center_baseline", "fontsize": 7}
    axes.text(*place, words, **style, zorder=5, in_layout=False)


def _ports(axes: Axes, layout: Layout, edges: pd.DataFrame) -> None:
    """Draw a small letter where edges enter a head's query, key or value."""
    for node, kind in sorted(set(zip(edges["node"], edges["kind"], strict=True))):
        if kind in "qkv":
            x, y = layout.place[node]
            axes.text(
                x + _port(kind), y - TALL / 2 - 0.02, kind, ha="center", va="center", fontsize=6, zorder=6,
                bbox={"boxstyle": "circle,pad=0.12", "facecolor": KINDS[kind][0], "linewidth": 0},
                color="white", in_layout=False,
            )  # fmt: skip


def _port(kind: str) -> float:
    return {"q": -0.2, "k": 0.0, "v": 0.2}.get(kind, 0.0)


def _sign_colour(score: float) -> str:
    return GREY if not np.isfinite(score) else NEGATIVE if score > 0 else POSITIVE


def _legend(figure: Figure, items: Sequence[tuple[str, str]], *, patches: bool = False) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, label=words)
        if patches
        else Line2D([], [], color=colour, linewidth=2.5, label=words)
        for colour, words in items
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(handles)))
