"""Figures of activation patching, from patching/effects.parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import (
    error_bars,
    label_points,
    layer_axis,
    no_data,
    ranked_bars,
    signed_map,
    ticks,
)
from mechatlas.figures.style import BLUE, GREY, ORANGE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELLED = 10


def select(
    effects: pd.DataFrame,
    *,
    point: str,
    direction: str = "denoise",
    place: str = "all",
    metric: str | None = None,
) -> pd.DataFrame:
    """Return the rows of one sweep; by default of the first metric of the table."""
    metric = effects["metric"].iloc[0] if metric is None and len(effects) else metric
    rows = effects[
        (effects["point"] == point)
        & (effects["direction"] == direction)
        & (effects["place"] == place)
        & (effects["metric"] == metric)
    ]
    return rows.reset_index(drop=True)


@styled
def effect_map(rows: pd.DataFrame, label: str, value: str = "effect") -> Figure:
    """Draw a signed value of every head as a map of layers and heads, white at zero.

    Parameters
    ----------
    rows : data frame
        ``layer``, ``head`` and the value; heads without one are hatched.
    label : str
        Words for the value.
    value : str
        Column.
    """
    rows = rows[rows["head"] >= 0]
    layers = int(rows["layer"].max()) + 1 if len(rows) else 1
    heads = int(rows["head"].max()) + 1 if len(rows) else 1
    grid = np.full((layers, heads), np.nan)
    grid[rows["layer"].to_numpy(int), rows["head"].to_numpy(int)] = rows[value].to_numpy(float)
    figure, axes = new_figure(max(4.4, 1.8 + 0.5 * min(heads, 22)), 1.3 + 0.36 * min(layers, 30))
    image = signed_map(axes, grid)
    layer_axis(axes, layers)
    shared = len(rows) and rows["component"].astype(str).str.contains(r"\.KV").any()
    axes.set(xlabel="key/value head" if shared else "head", xticks=ticks(heads))
    axes.set_title(label, loc="left")
    figure.colorbar(image, ax=axes)
    return figure


@styled
def top_effects(rows: pd.DataFrame, label: str, count: int = 15) -> Figure:
    """Draw the components with the largest absolute effects, largest first, with intervals."""
    order = rows["effect"].abs().sort_values(ascending=False, kind="stable").index[:count]
    return ranked_bars(rows.loc[order], "effect", label, p="p_fdr")


@styled
def attention_and_mlp_bars(attention: pd.DataFrame, mlp: pd.DataFrame, label: str) -> Figure:
    """Draw the effects of each layer's attention and MLP outputs side by side, with intervals.

    Parameters
    ----------
    attention, mlp : data frame
        `select` of the points ``attn_out`` and ``mlp_out``.
    label : str
        Words for the effect.
    """
    layers = 1 + max((int(t["layer"].max()) for t in (attention, mlp) if len(t)), default=0)
    figure, axes = new_figure(max(4.8, min(14.0, 1.4 + 0.42 * layers)), 3.2)
    for shift, table, colour, words in (
        (-0.2, attention, BLUE, "attention"),
        (0.2, mlp, ORANGE, "MLP"),
    ):
        if table.empty:
            continue
        at = table["layer"].to_numpy(float) + shift
        axes.bar(at, table["effect"], width=0.38, color=colour, label=words)
        error_bars(axes, at, table, ("low", "high"))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="layer", ylabel=label, xticks=ticks(layers))
    axes.grid(axis="x", visible=False)
    if len(attention) or len(mlp):
        figure.legend(loc="outside upper left", ncols=2)
    else:
        no_data(axes)
    return figure


@styled
def denoising_against_noising(denoise: pd.DataFrame, noise: pd.DataFrame) -> Figure:
    """Draw what restoring each component brings back against what corrupting it takes away.

    On the diagonal a component is as sufficient as it is necessary. Far below it, others can stand in for it; far
    above it, it works only together with others.

    Parameters
    ----------
    denoise, noise : data frame
        `select` of the two directions.
    """
    both = denoise.merge(noise, on="component", suffixes=("_x", "_y"))
    figure, axes = new_figure(5.6, 5.0)
    if both.empty:
        no_data(axes)
        return figure
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    x, y = both["effect_x"].to_numpy(float), both["effect_y"].to_numpy(float)
    axes.hlines(y, both["low_x"], both["high_x"], color=BLUE, linewidth=0.9, alpha=0.55)
    axes.vlines(x, both["low_y"], both["high_y"], color=BLUE, linewidth=0.9, alpha=0.55)
    axes.plot(x, y, "o", color=BLUE, markersize=4)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.set(
        xlabel="share restored by the clean activation (denoising)",
        ylabel="share lost by the corrupted activation (noising)",
    )
    axes.margins(0.08)
    order = np.argsort(-np.hypot(x, y), kind="stable")[:LABELLED]
    # Beyond the named ones, points only stand in the way of labels.
    label_points(axes, x[order], y[order], both["component"].to_numpy()[order])
    return figure
