"""Figures about circuits of several tasks: overlap, each on the data of the others, removal before generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import (
    hatch_missing,
    no_data,
    print_values,
    signed_map,
)
from mechatlas.figures.style import BLACK, BLUE, GREY, SEQUENTIAL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def cross_task_map(cross: pd.DataFrame) -> Figure:
    """Draw how much of the metric each circuit (row) keeps on each task's prompts (column), in percent.

    Parameters
    ----------
    cross : data frame
        circuits/cross_task.parquet.
    """
    grid, rows, columns = _grid(cross, "circuit", "data", "percent")
    figure, axes = new_figure(max(4.6, 2.6 + 0.95 * len(columns)), 1.5 + 0.46 * max(2, len(rows)))
    if not grid.size:
        no_data(axes)
        return figure
    # Colour stops at what a whole model does; harm and excess are told by the printed numbers.
    image = signed_map(axes, np.clip(grid, -150, 150))
    for text in list(axes.texts):
        text.remove()
    print_values(axes, grid, np.abs(grid) > 0.62 * image.norm.vmax, 0)
    axes.invert_yaxis()
    _name(axes, rows, columns)
    axes.set(xlabel="prompts of the task", ylabel="circuit of")
    axes.set_title("metric (% of the full model)", loc="left")
    figure.colorbar(image, ax=axes)
    return figure


@styled
def overlap_map(overlap: pd.DataFrame, method: str = "nodes", kind: str = "heads") -> Figure:
    """Draw the Jaccard index of the heads (or MLPs) of each pair of tasks.

    Parameters
    ----------
    overlap : data frame
        circuits/overlap.parquet.
    method : str
    kind : {"heads", "mlps"}
    """
    part = overlap[overlap["method"] == method]
    names = list(dict.fromkeys([*part["first"], *part["second"]]))
    figure, axes = new_figure(max(4.2, 2.2 + 0.9 * len(names)), 1.4 + 0.46 * max(2, len(names)))
    if not names:
        no_data(axes, "a single task")
        return figure
    grid = np.full((len(names),) * 2, np.nan)
    for a, b, value in zip(part["first"], part["second"], part[f"{kind}_jaccard"], strict=True):
        i, j = names.index(a), names.index(b)
        grid[i, j] = grid[j, i] = value
    np.fill_diagonal(grid, 1.0)
    image = axes.imshow(grid, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    hatch_missing(axes, grid)
    print_values(axes, grid, grid < 0.55, 2)
    _name(axes, names, names)
    words = {"heads": "heads", "mlps": "MLPs"}[kind]
    axes.set_title(f"Jaccard index of {words}", loc="left")
    figure.colorbar(image, ax=axes)
    return figure


@styled
def generation_bars(generation: pd.DataFrame, random: pd.DataFrame) -> Figure:
    """Draw the share of exactly generated answers when a circuit's heads are removed, beside random heads.

    Parameters
    ----------
    generation, random : data frame
        circuits/generation.parquet and generation_random.parquet.
    """
    rows = generation.reset_index(drop=True)
    figure, axes = new_figure(7.2, 1.3 + 0.34 * max(2, len(rows)))
    if rows.empty:
        no_data(axes)
        return figure
    at = np.arange(len(rows))
    axes.barh(at, rows["exact"], height=0.62, color=BLUE, label="circuit removed")
    axes.plot(
        rows["full"],
        at,
        "|",
        color=BLACK,
        markersize=13,
        markeredgewidth=2,
        label="nothing removed",
    )
    labelled = False
    for level, row in zip(at, rows.itertuples(), strict=True):
        mine = random[(random["circuit"] == row.circuit) & (random["data"] == row.data)]
        values = np.sort(mine["exact"].to_numpy(float))
        height = level + ((np.arange(len(values)) * 0.382) % 1 - 0.5) * 0.5
        axes.plot(
            values, height, "o", color=GREY, markersize=2.6, alpha=0.75, markeredgecolor="white", markeredgewidth=0.3,
            label=None if labelled else "as many random heads",
        )  # fmt: skip
        labelled = labelled or bool(len(values))
    names = [f"{row.circuit} circuit, {row.data} prompts" for row in rows.itertuples()]
    axes.set_yticks(at, names, fontsize=8)
    axes.set(xlabel="share of exact answers", xlim=(-0.03, 1.03), ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _grid(
    table: pd.DataFrame, row: str, column: str, value: str
) -> tuple[np.ndarray, list[str], list[str]]:
    rows, columns = (list(dict.fromkeys(table[name])) for name in (row, column))
    grid = np.full((len(rows), len(columns)), np.nan)
    for a, b, v in zip(table[row], table[column], table[value], strict=True):
        grid[rows.index(a), columns.index(b)] = v
    return grid, rows, columns


def _name(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    long = max((len(name) for name in columns), default=0) > 9
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(columns)), columns, **turned)
    axes.set_yticks(range(len(rows)), rows)
