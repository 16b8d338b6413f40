"""Figures of node circuits: knock-outs, pruning, stability, random circuits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import (
    error_bars,
    hatch_missing,
    layer_axis,
    no_data,
    print_values,
    ticks,
)
from mechatlas.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SEQUENTIAL,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROCEDURES = {
    "greedy": (BLUE, "greedy passes"),
    "least_harmful": (ORANGE, "least harmful first"),
}
PROFILES = {
    "layer": "heads per layer and MLPs as in the circuit",
    "kind": "as many heads and MLPs",
    "size": "as many nodes",
}


@styled
def knock_out_bars(effects: pd.DataFrame, count: int = 14) -> Figure:
    """Draw the drop of the metric without each component, from the full model and inside the circuit.

    Parameters
    ----------
    effects : data frame
        nodes/effects.parquet.
    count : int
        Components with the largest drops that are shown.
    """
    size = effects.assign(size=effects["drop"].abs()).groupby("component", sort=False)["size"].max()
    names = size.sort_values(ascending=False, kind="stable").index[:count]
    figure, axes = new_figure(6.8, 1.2 + 0.32 * max(3, len(names)))
    if not len(names):
        no_data(axes)
        return figure
    place = {name: i for i, name in enumerate(names)}
    kinds = {"full": (BLUE, "from the full model"), "circuit": (ORANGE, "inside the circuit")}
    for shift, (base, (colour, words)) in zip((-0.2, 0.2), kinds.items(), strict=True):
        rows = effects[(effects["base"] == base) & effects["component"].isin(place)]
        at = rows["component"].map(place).to_numpy(float) + shift
        axes.barh(at, rows["drop"], height=0.38, color=colour, label=words)
        error_bars(axes, at, rows, ("low", "high"), across=True)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="drop without it (% of the full model)", ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def pruning_curve(curve: pd.DataFrame, threshold: float | None = None) -> Figure:
    """Draw how much of the metric is left while nodes are pruned, on held-out prompts with intervals.

    Parameters
    ----------
    curve : data frame
        nodes/curve.parquet.
    threshold : float, optional
        Percent that pruning was told to keep, as a dashed line.
    """
    figure, axes = new_figure(6.6, 3.8)
    held = curve[curve["split"] == "held_out"]
    for name, (colour, words) in PROCEDURES.items():
        rows = held[held["procedure"] == name].sort_values("nodes")
        if rows.empty:
            continue
        axes.fill_between(
            rows["nodes"], rows["percent_low"], rows["percent_high"], color=colour, alpha=0.18,
            linewidth=0,
        )  # fmt: skip
        axes.plot(rows["nodes"], rows["percent"], "o-", color=colour, markersize=3, label=words)
        found = curve[(curve["split"] == "discovery") & (curve["procedure"] == name)]
        found = found.sort_values("nodes")
        axes.plot(
            found["nodes"], found["percent"], ":", color=colour, linewidth=1.2,
            label=f"{words}, prompts it was found on",
        )  # fmt: skip
    axes.axhline(100, color=GREY, linewidth=0.8)
    if threshold is not None:
        axes.axhline(threshold, color=GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="nodes left (heads and MLPs)", ylabel="metric (% of the full model)")
    if held.empty:
        no_data(axes)
    else:
        _cut_percent(axes, held)
        axes.invert_xaxis()
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def _cut_percent(axes: Any, rows: pd.DataFrame) -> None:
    low = max(-60.0, float(rows["percent"].min()) - 8)
    high = min(220.0, float(rows["percent"].max()) + 8)
    axes.set_ylim(low, max(high, 110.0))


@styled
def inclusion_map(stability: pd.DataFrame) -> Figure:
    """Draw how often each node is in the circuit of a random half of the prompts; the circuit's own are framed.

    Parameters
    ----------
    stability : data frame
        nodes/stability.parquet.
    """
    from matplotlib.patches import Rectangle

    layers = int(stability["layer"].max()) + 1 if len(stability) else 1
    heads = int(stability["head"].max()) + 1 if len(stability) else 1
    grid, inside = np.full((layers, heads + 1), np.nan), np.zeros((layers, heads + 1), dtype=bool)
    column = np.where(stability["head"] < 0, heads, stability["head"])
    grid[stability["layer"].to_numpy(int), column] = stability["frequency"].to_numpy(float)
    inside[stability["layer"].to_numpy(int), column] = stability["in_circuit"].to_numpy(bool)
    figure, axes = new_figure(
        max(4.6, 1.8 + 0.47 * min(heads + 1, 22)), 1.3 + 0.36 * min(layers, 30)
    )
    image = axes.imshow(grid, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", origin="lower")
    axes.grid(False)
    hatch_missing(axes, grid)
    if max(grid.shape) <= 16:
        print_values(axes, grid, grid < 0.55, 2)
    for layer, place in np.argwhere(inside):
        axes.add_patch(
            Rectangle(
                (place - 0.46, layer - 0.46),
                0.92,
                0.92,
                fill=False,
                edgecolor=RED,
                linewidth=2.2,
            )
        )
    axes.axvline(heads - 0.5, color="white", linewidth=3)
    layer_axis(axes, layers)
    places = ticks(heads)
    axes.set_xticks([*places, heads], [*map(str, places), "MLP"])
    axes.set(xlabel="head")
    axes.set_title("share of half-samples", loc="left")
    figure.colorbar(image, ax=axes)
    return figure


@styled
def random_circuits(random: pd.DataFrame, circuit: Mapping[str, float]) -> Figure:
    """Draw the scores of random circuits (a dot each) beside that of the circuit.

    Parameters
    ----------
    random : data frame
        nodes/random.parquet.
    circuit : mapping
        ``percent``, ``percent_low`` and ``percent_high`` on the same prompts.
    """
    names = [name for name in PROFILES if (random["profile"] == name).any()]
    figure, axes = new_figure(6.8, 1.2 + 0.55 * max(1, len(names)))
    for level, name in enumerate(names):
        values = np.sort(random.loc[random["profile"] == name, "percent"].to_numpy(float))
        axes.plot(values, level + _spread(len(values)), "o", color=GREY, markersize=3, alpha=0.6)
        axes.vlines(values.mean(), level - 0.36, level + 0.36, color=BLACK, linewidth=1.8, zorder=3)
    axes.axvspan(
        circuit["percent_low"], circuit["percent_high"], color=GREEN, alpha=0.2, linewidth=0
    )
    axes.axvline(circuit["percent"], color=GREEN, linewidth=2, label="the circuit")
    axes.set_yticks(range(len(names)), [PROFILES[name] for name in names])
    axes.set(xlabel="metric (% of the full model)", ylim=(max(1, len(names)) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left")
    return figure


def _spread(count: int) -> np.ndarray:
    """Offsets that keep neighbouring dots apart without chance."""
    return ((np.arange(count) * 0.382) % 1 - 0.5) * 0.5


def circuit_nodes(circuit: Mapping[str, Any]) -> list[str]:
    """Return the names of the nodes of a circuit.json, by layer, heads before the MLP."""
    names: Collection[tuple[int, int, str]] = [
        *((layer, head, f"L{layer}.H{head}") for layer, head in circuit["heads"]),
        *((layer, 10**6, f"L{layer}.mlp") for layer in circuit["mlps"]),
    ]
    return [name for _, _, name in sorted(names)]
