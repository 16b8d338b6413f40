"""Figures of cross-layer transcoders: data frame in, figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.html import visible_characters
from mechatlas.figures.style import BLUE, GREEN, GREY, ORANGE, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour, marker and words of each kind of decoder.
DECODERS = {
    "cross": (BLUE, "o", "cross-layer"),
    "per_layer": (ORANGE, "s", "one for each layer"),
    "tied": (GREEN, "^", "cross-layer, tied"),
}
PANELS = {
    "fvu": "fraction of variance unexplained",
    "kl": "KL(model || replacement), nats",
    "replacement_corrected": "replacement score",
}


@styled
def sweep_frontier(points: pd.DataFrame) -> Figure:
    """Draw error, divergence and replacement score against active features, a line for each kind of transcoder.

    Parameters
    ----------
    points : DataFrame
        `mechatlas.dictionaries.sweep_tables.sweep_table`: a small dot for each seed with its interval over documents
        (over prompts for the score), a line through the means over seeds.
    """
    shown = {name: words for name, words in PANELS.items() if name in points}
    figure = _new(3.0 * len(shown) + 0.4, 3.4)
    for axes, (metric, words) in zip(
        np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True
    ):
        for kind, rows in points.groupby("decoders"):
            colour, marker, name = DECODERS[kind]
            ends = np.stack([rows[metric] - rows[f"{metric}_low"], rows[f"{metric}_high"] - rows[metric]])  # fmt: skip
            axes.errorbar(
                rows["l0"], rows[metric], yerr=np.clip(np.nan_to_num(ends), 0, None), fmt=marker,
                color=colour, markersize=3, linewidth=0.8, alpha=0.6,
            )  # fmt: skip
            means = rows.groupby("value")[["l0", metric]].mean().sort_values("l0")
            axes.plot(means["l0"], means[metric], color=colour, linewidth=1.6, label=name)
        axes.set(xlabel="active features per layer and token (L0)", title=words, xlim=(0, None))
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@styled
def training_curves(training: pd.DataFrame) -> Figure:
    """Draw error, active and dead features of each layer, and the loss, over the steps of training.

    Parameters
    ----------
    training : DataFrame
        training.parquet of a transcoder.
    """
    figure = _new(10.4, 2.8)
    panels = {
        "loss": "loss",
        "fvu": "fraction of variance unexplained",
        "l0": "active features per token",
        "dead_share": "share of dead features",
    }
    grid = figure.subplots(1, len(panels))
    for axes, (metric, words) in zip(grid, panels.items(), strict=True):
        by_layer = [("all", training.groupby("step", as_index=False)[metric].first())]
        if metric != "loss":
            by_layer = list(training.groupby("layer"))
        for place, (layer, rows) in enumerate(by_layer):
            colour = "black" if layer == "all" else _shade(place, len(by_layer))
            axes.plot(rows["step"], rows[metric], color=colour, linewidth=1, label=f"layer {layer}")
        axes.set(title=words, xlabel="step", ylim=(0, None))
    handles, labels = grid[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 12))
    return figure


@styled
def layer_quality(evaluation: pd.DataFrame) -> Figure:
    """Draw the variance left and the active features of each layer on test documents, with intervals."""
    figure = _new(6.4, 2.8)
    layers = evaluation[evaluation["layer"] >= 0]
    for axes, (metric, words) in zip(
        figure.subplots(1, 2),
        {"fvu": "fraction of variance unexplained", "l0": "active features per token"}.items(),
        strict=True,
    ):
        rows = layers[layers["metric"] == metric]
        ends = np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]])
        axes.bar(rows["layer"], rows["value"], color=BLUE, width=0.6)
        axes.errorbar(
            rows["layer"], rows["value"], yerr=ends, fmt="none", color="black", linewidth=1
        )
        axes.set(xlabel="layer", title=words)
        axes.set_xticks(rows["layer"])
        axes.grid(axis="x", visible=False)
    return figure


#: What the model runs on, with words.
RUNS = {
    "loss_model": "the model",
    "loss_reconstruction": "transcoder for all MLPs",
    "loss_mean": "mean MLP outputs",
    "loss_zero": "no MLPs",
}


@styled
def model_comparison(evaluation: pd.DataFrame) -> Figure:
    """Draw the loss of the model, of the replacement model, and of the model with constant MLP outputs."""
    whole = evaluation[evaluation["layer"] < 0].set_index("metric")
    figure = _new(6.4, 2.0)
    axes = figure.subplots()
    for place, metric in enumerate(RUNS):
        row = whole.loc[metric]
        axes.barh(place, row["value"], color=BLUE if place < 2 else GREY, height=0.6)
        ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axes.errorbar(row["value"], place, xerr=ends, color="black", linewidth=1)
    axes.set_yticks(range(len(RUNS)), RUNS.values())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("loss on test documents, nats per token")
    return figure


@styled
def feature_importance(features: pd.DataFrame) -> Figure:
    """Draw how what the features of each layer write is spread over them, and how often they are active.

    Parameters
    ----------
    features : DataFrame
        features.parquet with a column ``importance``.
    """
    figure = _new(8.4, 3.0)
    ranked, often = figure.subplots(1, 2)
    groups = list(features.groupby("layer"))
    edges = np.arange(-5, 0.01, 0.25)
    for place, (layer, rows) in enumerate(groups):
        values = np.sort(rows["importance"].to_numpy())[::-1]
        share = np.cumsum(values) / max(values.sum(), 1e-30)
        colour = _shade(place, len(groups))
        ranked.plot(
            np.arange(1, len(share) + 1) / len(share), share, color=colour, label=f"layer {layer}"
        )
        alive = rows.loc[rows["density"] > 0, "density"]
        counts, _ = np.histogram(np.clip(np.log10(alive), edges[0], edges[-1]), edges)
        often.stairs(counts, edges, color=colour, linewidth=1.4)
    ranked.set(
        xlabel="share of features, most important first",
        ylabel="share of what is written",
        ylim=(0, 1),
    )
    ranked.legend(loc="lower right", fontsize=8)
    often.set(xlabel="share of test tokens on which a feature is active", ylabel="features")
    often.set_xticks(range(-5, 1), [f"$10^{{{tick}}}$" for tick in range(-5, 1)])
    return figure


@styled
def feature_lines(activations: pd.DataFrame, texts: list[str]) -> Figure:
    """Draw the strongest features of each layer over the tokens of one text, a panel for each layer.

    Parameters
    ----------
    activations : DataFrame
        Rows of one text of activations.parquet.
    texts : list of str
        Its tokens.
    """
    layers = list(activations.groupby("layer"))
    figure = _new(max(5.0, 0.34 * len(texts)), 1.7 * len(layers))
    for axes, (layer, rows) in zip(
        np.atleast_1d(figure.subplots(len(layers), 1, sharex=True)), layers, strict=True
    ):
        for place, (_, one) in enumerate(rows.groupby("rank")):
            name = f"F{one['feature'].iloc[0]}"
            axes.plot(
                one["position"],
                one["activation"],
                marker=".",
                linewidth=1,
                label=name,
                color=f"C{place}",
            )
        axes.set_ylabel(f"layer {layer}")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, ncols=1)
    _token_ticks(axes, texts)
    return figure


@styled
def feature_heatmap(activations: pd.DataFrame, texts: list[str]) -> Figure:
    """Draw the same as a map: a row for each feature, a column for each token, as a share of the feature's largest."""
    pivot = activations.pivot_table(
        index=["layer", "rank", "feature"], columns="position", values="activation"
    ).sort_index()
    values = pivot.to_numpy()
    shares = values / np.maximum(values.max(1, keepdims=True), 1e-30)
    figure = _new(max(5.0, 0.34 * len(texts)), 0.16 * len(pivot) + 1.2)
    axes = figure.subplots()
    image = axes.imshow(
        shares, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks(
        range(len(pivot)), [f"L{layer}/F{f}" for layer, _, f in pivot.index], fontsize=6
    )
    axes.grid(visible=False)
    _token_ticks(axes, texts)
    figure.colorbar(image, ax=axes, label="share of its largest here", shrink=0.6)
    return figure


@styled
def text_map(points: pd.DataFrame, method: str) -> Figure:
    """Draw texts in two dimensions by their mean features, a panel for each layer, a colour for each group."""
    rows = points[points["method"] == method]
    layers, groups = list(rows.groupby("layer")), list(dict.fromkeys(rows["group"]))
    across = min(4, len(layers))
    down = -(-len(layers) // across)
    figure = _new(2.6 * across, 2.5 * down + 0.3)
    grid = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes, (layer, part) in zip(grid, layers, strict=False):
        for place, group in enumerate(groups):
            one = part[part["group"] == group]
            axes.plot(
                one["x"], one["y"], "o", markersize=3, alpha=0.8, label=group, color=f"C{place}"
            )
        axes.set(title=f"layer {layer}", xticks=[], yticks=[])
    for axes in grid[len(layers) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


@styled
def correlation_map(correlations: pd.DataFrame) -> Figure:
    """Draw the correlations of the most important features of all layers."""
    names = list(dict.fromkeys(zip(correlations["layer"], correlations["feature"], strict=True)))
    matrix = correlations["correlation"].to_numpy().reshape(len(names), len(names))
    figure = _new(0.14 * len(names) + 1.8, 0.14 * len(names) + 1.0)
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    labels = [f"L{layer}/F{feature}" for layer, feature in names]
    axes.set_xticks([])
    axes.set_yticks(range(len(names)), labels, fontsize=5)
    edges = np.flatnonzero(np.diff([layer for layer, _ in names])) + 0.5
    for edge in edges:
        axes.axhline(edge, color="black", linewidth=0.6)
        axes.axvline(edge, color="black", linewidth=0.6)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="correlation over test tokens", shrink=0.7)
    return figure


@styled
def layer_weights(summary: pd.DataFrame) -> Figure:
    """Draw the mean absolute virtual weight and expected effect between the features of each pair of layers."""
    count = int(summary["target_layer"].max()) + 1 if len(summary) else 1
    figure = _new(6.6, 2.9)
    panels = {"mean_weight": "mean |weight|", "mean_expected": "mean |expected effect|"}
    for axes, (column, words) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        grid = np.full((count, count), np.nan)
        grid[summary["target_layer"], summary["layer"]] = summary[column]
        image = axes.imshow(grid, cmap="cividis", origin="lower", interpolation="nearest")
        axes.set(xlabel="layer of the source", ylabel="layer of the target", title=words)
        axes.set_xticks(range(count))
        axes.set_yticks(range(count))
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _token_ticks(axes: Axes, texts: list[str]) -> None:
    shown = [visible_characters(text)[:14].replace("$", r"\$") for text in texts]
    axes.set_xticks(range(len(texts)), shown, rotation=60, ha="right", fontsize=7)


def _shade(place: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["cividis"](place / max(count, 2))
