"""The transcoders of one model and source as figures of a paper: frontier, training, graphs and their tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechatlas.figures.circuits.common import no_data
from mechatlas.figures.dictionaries import frontier
from mechatlas.figures.html import visible_characters
from mechatlas.figures.paper.dictionaries import training_figure
from mechatlas.figures.paper.files import Drawn, drawn_at
from mechatlas.figures.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    ORANGE,
    PAGE,
    RED,
    new_figure,
    styled,
)
from mechatlas.io import read_json, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGES = 150
NODES = {
    "cross layer transcoder": (BLUE, "o", "feature"),
    "mlp reconstruction error": (RED, "D", "reconstruction error"),
    "embedding": (GREY, "s", "token"),
    "logit": (BLACK, "s", "logit"),
    "bias": ("#b0b0b0", "^", "position, bias"),
}


@dataclass(frozen=True)
class TranscoderFiles:
    """The files of one transcoder.

    Attributes
    ----------
    evaluation, training : path
    graphs : mapping of str to (path, path)
        Name of a graph to its JSON in the public schema and its consistency.parquet.
    """

    evaluation: str | Path
    training: str | Path
    graphs: Mapping[str, tuple[str | Path, str | Path]]


def transcoder_figures(files: Mapping[str, TranscoderFiles]) -> Iterator[Drawn]:
    """Draw the frontier of all transcoders, and for each one its training and its graphs."""
    points = frontier_points({name: read_table(entry.evaluation) for name, entry in files.items()})
    tokens = max(int(read_table(entry.evaluation)["tokens"].max()) for entry in files.values())
    yield Drawn(
        "frontier",
        drawn_at(COLUMN, frontier, points),
        points,
        f"Fraction of variance of MLP outputs unexplained (no unit) against active features per token and layer on "
        f"{tokens} test tokens, a point for each transcoder and layer. Lines at points are bootstrap intervals over "
        "documents.",
    )
    for name, entry in files.items():
        yield training_figure(name, read_table(entry.training), "features")
        for graph, (public, consistency) in entry.graphs.items():
            yield from graph_figures(f"{name}_{graph}", read_json(public), read_table(consistency))


def frontier_points(evaluations: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return variance unexplained and active features with their intervals, a row a transcoder and layer."""
    rows = []
    for name, table in evaluations.items():
        of_layers = table[(table["layer"] >= 0) & table["metric"].isin(["fvu", "l0"])]
        for layer, part in of_layers.groupby("layer"):
            one = part.set_index("metric")
            row: dict[str, Any] = {"dictionary": name, "layer": layer}
            for metric in ("fvu", "l0"):
                row[metric] = one["value"][metric]
                row |= {f"{metric}_{end}": one[end][metric] for end in ("low", "high")}
            rows.append(row)
    return pd.DataFrame(rows).sort_values(["layer", "l0"], ignore_index=True)


def graph_figures(
    name: str, public: Mapping[str, Any], consistency: pd.DataFrame
) -> Iterator[Drawn]:
    """Draw an attribution graph, and what interventions say of it."""
    nodes, links = graph_tables(public)
    texts = public["metadata"]["prompt_tokens"]
    drawn = strongest_links(links)
    yield Drawn(
        f"{name}_graph",
        drawn_at(PAGE, graph_picture, nodes, drawn, texts),
        drawn,
        f"Attribution graph of one prompt of {len(texts)} tokens: {len(nodes)} nodes left after pruning, and the "
        f"{len(drawn)} strongest of {len(links)} edges, as wide as their direct effects on a pre-activation or logit. "
        "Blue raises, red lowers. Features of one layer and position stand beside each other.",
    )
    yield Drawn(
        f"{name}_interventions",
        drawn_at(COLUMN, consistency_points, consistency),
        consistency,
        f"Change of a pre-activation or logit (in its unit) when a feature is set to 0, {len(consistency)} nodes and "
        "edges of the graph: predicted by the graph and measured, with attention and other features frozen, and free.",
    )


def graph_tables(public: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the nodes of a public graph (``id``, ``row``, ``position``, ``type``) and its links by strength."""
    layers = [int(n["layer"]) for n in public["nodes"] if n["feature_type"] not in ("logit", "embedding")
              and str(n["layer"]).isdigit()]  # fmt: skip
    top = max(layers, default=0) + 1
    nodes = pd.DataFrame(
        [
            {
                "id": node["node_id"],
                "row": -1 if node["layer"] == "E" else int(node["layer"]),
                "position": int(node["ctx_idx"]),
                "type": node["feature_type"],
                "words": node["clerp"],
            }
            for node in public["nodes"]
        ]
    ).sort_values(["row", "position", "type", "id"], ignore_index=True)
    nodes.loc[nodes["type"] == "logit", "row"] = top
    links = pd.DataFrame(public["links"], columns=["source", "target", "weight"])
    order = links["weight"].abs().sort_values(ascending=False, kind="stable").index
    return nodes, links.loc[order].reset_index(drop=True)


def strongest_links(links: pd.DataFrame, most: int = EDGES) -> pd.DataFrame:
    """Return the links with the largest absolute weights."""
    return links.head(most)


@styled
def graph_picture(nodes: pd.DataFrame, links: pd.DataFrame, texts: Sequence[str]) -> Figure:
    """Draw a graph: positions from left to right, layers from the bottom to the top, edges as wide as they are strong.

    Parameters
    ----------
    nodes, links : data frame
        `graph_tables`.
    texts : sequence of str
        The tokens of the prompt.
    """
    rows = sorted(nodes["row"].unique())
    figure, axes = new_figure(6.9, 1.5 + 0.55 * len(rows))
    place = node_places(nodes)
    most = float(links["weight"].abs().max()) if len(links) else 1.0
    for link in links.iloc[::-1].itertuples():
        (x0, y0), (x1, y1) = place[link.source], place[link.target]
        share = abs(link.weight) / most
        axes.plot(
            [x0, x1], [y0, y1], color=BLUE if link.weight > 0 else RED, linewidth=0.2 + 2.2 * share,
            alpha=0.15 + 0.6 * share, zorder=1 + share,
        )  # fmt: skip
    for kind, (colour, marker, words) in NODES.items():
        mine = [place[n] for n in nodes.loc[nodes["type"] == kind, "id"]]
        if mine:
            x, y = zip(*mine, strict=True)
            axes.plot(
                x, y, marker, color=colour, markersize=3.2, markeredgecolor="white", markeredgewidth=0.3,
                label=words, zorder=4,
            )  # fmt: skip
    names = {-1: "input", rows[-1]: "logits"}
    axes.set_yticks(rows, [names.get(row, f"layer {row}") for row in rows])
    words = [visible_characters(text).strip() or "␣" for text in texts]
    axes.set_xticks(range(len(texts)), words, rotation=60, ha="right", rotation_mode="anchor")
    axes.set(xlim=(-0.6, len(texts) - 0.4), ylim=(rows[0] - 0.5, rows[-1] + 0.5))
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=5)
    return figure


def node_places(nodes: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return where nodes are: those of one row and position beside each other, in the order of the table."""
    place = {}
    for (row, position), part in nodes.groupby(["row", "position"], sort=True):
        count = len(part)
        gap = min(0.2, 0.84 / max(1, count))
        for number, name in enumerate(part["id"]):
            across = position + gap * (number - (count - 1) / 2)
            place[name] = (across, row + (0.12 if number % 2 else -0.12) * (count > 4))
    return place


@styled
def consistency_points(consistency: pd.DataFrame) -> Figure:
    """Draw measured against predicted changes, frozen and free.

    Parameters
    ----------
    consistency : data frame
        consistency.parquet of a graph.
    """
    figure, axes = new_figure(4.6, 4.0)
    if consistency.empty:
        no_data(axes)
        return figure
    for column, colour, marker, words in (
        ("measured_free", ORANGE, "s", "model free"),
        ("measured_frozen", BLUE, "o", "all else frozen"),
    ):
        axes.plot(consistency["predicted"], consistency[column], marker, color=colour, markersize=3, alpha=0.7,
                  label=words)  # fmt: skip
    ends = [consistency["predicted"].min(), consistency["predicted"].max()]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.set(xlabel="predicted change", ylabel="measured change")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
