"""Figures of head scores: data frame in, figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.style import (
    EXPLANATION,
    GREY,
    SEQUENTIAL,
    in_order,
    new_figure,
    styled,
    variant_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to this many columns and rows a map prints its values.
PRINTED = 16
# Up to this many heads an axis names them.
NAMED = 80


@styled
def layer_head_map(table: pd.DataFrame, value: str, label: str) -> Figure:
    """Draw a score of every head as a map of layers and heads.

    Parameters
    ----------
    table : data frame
        Columns ``layer``, ``head`` and ``value``; heads without a value are hatched.
    value : str
        Name of the column.
    label : str
        Words for the score.
    """
    layers, heads = int(table["layer"].max()) + 1, int(table["head"].max()) + 1
    grid = np.full((layers, heads), np.nan)
    grid[table["layer"].to_numpy(), table["head"].to_numpy()] = table[value].to_numpy(float)
    figure, axes = new_figure(max(4.0, 1.6 + 0.47 * min(heads, 20)), 1.2 + 0.36 * min(layers, 26))
    low = min(0.0, float(np.nanmin(grid))) if np.isfinite(grid).any() else 0.0
    low = max(low, -1.0)  # a head far below zero must not take the scale from all others
    image = axes.imshow(grid, cmap=SEQUENTIAL, vmin=low, vmax=1, aspect="auto", origin="lower")
    axes.grid(False)
    _hatch(axes, grid)
    if max(layers, heads) <= PRINTED:
        _print_values(axes, grid, low)
    axes.set_title(label, loc="left")
    axes.set(xlabel="head", ylabel="layer", xticks=_ticks(heads), yticks=_ticks(layers))
    cut = bool(np.nanmin(grid, initial=0.0) < low)
    figure.colorbar(image, ax=axes, extend="min" if cut else "neither")
    return figure


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, count // 16)))


def _hatch(axes: Axes, grid: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    for layer, head in np.argwhere(np.isnan(grid)):
        corner = (head - 0.5, layer - 0.5)
        axes.add_patch(
            Rectangle(
                corner, 1, 1, facecolor="#f2f2f2", edgecolor="#b0b0b0", hatch="///", linewidth=0
            )
        )


def _print_values(axes: Axes, grid: np.ndarray, low: float) -> None:
    for (layer, head), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = (value - low) / (1 - low) < 0.55
            axes.text(
                head, layer, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=7.5,
                color="white" if dark else "black", in_layout=False,
            )  # fmt: skip


@styled
def score_against_controls(scores: pd.DataFrame, metric: str, label: str) -> Figure:
    """Draw each head's score with its interval, and the same score of each control.

    Parameters
    ----------
    scores : data frame
        scores.parquet.
    metric : str
    label : str
        Words for the score.
    """
    rows = scores[(scores["metric"] == metric) & scores["value"].notna()]
    own = rows[rows["control"] == "none"].sort_values(
        ["value", "layer", "head"], ascending=[False, True, True]
    )
    figure, axes = new_figure(max(6.4, min(14.0, 1.2 + 0.19 * len(own))), 3.9)
    place = {unit: i for i, unit in enumerate(own["unit"])}
    for control in in_order(set(rows["control"]) - {"none"}):
        points = rows[(rows["control"] == control) & rows["unit"].isin(place)]
        colour, marker, words = variant_style(control)
        at = points["unit"].map(place)
        axes.vlines(at, points["low"], points["high"], color=colour, linewidth=0.8, alpha=0.45)
        axes.plot(at, points["value"], marker, color=colour, markersize=3.6, label=words)
    _points(axes, np.arange(len(own)), own)
    _name_heads(axes, own["unit"])
    axes.set(ylabel=label, ylim=_limits(rows))
    figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handletextpad=0.3)
    return figure


def _points(axes: Axes, at: np.ndarray, own: pd.DataFrame) -> None:
    colour, marker, words = variant_style("none")
    axes.vlines(at, own["low"], own["high"], color=colour, linewidth=1.6)
    axes.plot(at, own["value"], marker, color=colour, markersize=4.4, label=words)


def _name_heads(axes: Axes, units: Sequence[str]) -> None:
    units = list(units)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.8, max(len(units), 1) - 0.2)
    if len(units) <= NAMED:
        axes.set_xticks(range(len(units)), units, rotation=90, fontsize=7)
    else:
        axes.set_xlabel("heads, best explained first")


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Limits around 0 to 1; intervals that reach far out are cut, so that the heads stay apart."""
    if rows.empty:
        return 0.0, 1.0
    lowest = np.nanmin(np.minimum(rows["value"], rows["low"].fillna(rows["value"])))
    highest = np.nanmax(np.maximum(rows["value"], rows["high"].fillna(rows["value"])))
    return float(np.clip(lowest - 0.04, -1.1, -0.02)), float(np.clip(highest + 0.04, 1.02, 1.5))


@styled
def score_distribution(scores: pd.DataFrame, metric: str, label: str) -> Figure:
    """Draw the distribution over heads of a score, beside that of each control (one dot a head, bar at the mean)."""
    rows = scores[(scores["metric"] == metric) & scores["value"].notna()]
    names = in_order({"none", *rows["control"]})
    figure, axes = new_figure(6.4, 0.9 + 0.62 * len(names))
    for level, name in enumerate(names):
        values = np.sort(rows.loc[rows["control"] == name, "value"].to_numpy(float))
        if not len(values):
            continue
        colour, marker, _ = variant_style(name)
        axes.plot(
            values, level + _spread(len(values)), marker, color=colour, markersize=3.6, alpha=0.7
        )
        axes.vlines(
            values.mean(), level - 0.36, level + 0.36, color="black", linewidth=1.8, zorder=3
        )
    axes.set(xlabel=label, xlim=_limits(rows), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), [variant_style(name)[2] for name in names])
    axes.grid(axis="y", visible=False)
    return figure


def _spread(count: int) -> np.ndarray:
    """Offsets that keep neighbouring dots apart without chance."""
    return ((np.arange(count) * 0.382) % 1 - 0.5) * 0.5


@styled
def interval_plot(scores: pd.DataFrame, metric: str, label: str) -> Figure:
    """Draw one metric of every head with its interval, best first, with lines at 0 and 1."""
    rows = scores[
        (scores["metric"] == metric) & (scores["control"] == "none") & scores["value"].notna()
    ]
    rows = rows.sort_values(["value", "layer", "head"], ascending=[False, True, True])
    figure, axes = new_figure(max(6.4, min(14.0, 1.2 + 0.19 * len(rows))), 3.3)
    for level in (0, 1):
        axes.axhline(level, color=GREY, linewidth=1, linestyle="--")
    _points(axes, np.arange(len(rows)), rows)
    _name_heads(axes, rows["unit"])
    axes.set(ylabel=label, ylim=_limits(rows))
    return figure


@styled
def replacement_curve(curve: pd.DataFrame) -> Figure:
    """Draw the perplexity ratio against the share of heads that run on their programs.

    Parameters
    ----------
    curve : data frame
        replacement.parquet: order, share, heads, perplexity, ratio, low, high.
    """
    orders = {
        "best": (EXPLANATION, "o", "programs, best explained first"),
        "random": (variant_style("swapped")[0], "s", "programs, random order"),
        "mean_pattern": (
            variant_style("random_weights")[0],
            "D",
            "mean patterns, same order as the first",
        ),
    }
    figure, axes = new_figure(6.4, 3.9)
    for name, (colour, marker, words) in orders.items():
        rows = curve[curve["order"] == name].sort_values("share")
        if rows.empty:
            continue
        axes.fill_between(
            100 * rows["share"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0
        )
        axes.plot(
            100 * rows["share"],
            rows["ratio"],
            marker=marker,
            color=colour,
            markersize=4,
            label=words,
        )
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    if len(curve) and float(curve["ratio"].max()) > 4:
        _log_scale(axes, float(curve["ratio"].max()))
    axes.set(
        xlabel="share of heads replaced (%)",
        ylabel="perplexity / perplexity of the model",
        xlim=(0, 102),
    )
    axes.legend(loc="upper left")
    return figure


def _log_scale(axes: Axes, highest: float) -> None:
    axes.set_yscale("log")
    ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000, 10000) if t <= 1.3 * highest]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


@styled
def clusters_overview(sizes: Sequence[tuple[str, int, float]], noise: int) -> Figure:
    """Draw the sizes of clusters.

    Parameters
    ----------
    sizes : sequence of (label, heads, mean score)
    noise : int
        Heads outside every cluster.
    """
    import textwrap

    from matplotlib import colormaps

    rows = [*sizes, *([("in no cluster", noise, float("nan"))] if noise else [])]
    figure, axes = new_figure(7.6, 0.9 + 0.5 * max(1, len(rows)))
    colours = [
        colormaps[SEQUENTIAL](score) if np.isfinite(score) else "#c8c8c8" for _, _, score in rows
    ]
    axes.barh(range(len(rows)), [count for _, count, _ in rows], color=colours, height=0.7)
    for level, (_, count, score) in enumerate(rows):
        words = f" {count}" + (f", mean IoU {score:.2f}" if np.isfinite(score) else "")
        axes.text(count, level, words, va="center", fontsize=8)
    axes.set_yticks(
        range(len(rows)), [textwrap.fill(name, 48) for name, _, _ in rows], fontsize=7.5
    )
    axes.set(xlabel="heads", ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlim(0, 1.45 * max((count for _, count, _ in rows), default=1))
    axes.grid(axis="y", visible=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
