"""What the figures of circuits share: colours of tasks and signs, bars with intervals, maps, labels that keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

POSITIVE, NEGATIVE = BLUE, RED
#: Red below, blue above zero: apart for any kind of colour vision.
DIVERGING = "RdBu"
TASK_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, RED, BLACK)
SIGNIFICANT = 0.05
#: Up to this many cells a side, maps print their values.
PRINTED = 16


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """Return a colour for every task, the same for the same list."""
    return {task: TASK_COLOURS[i % len(TASK_COLOURS)] for i, task in enumerate(tasks)}


def minus(value: float, digits: int) -> str:
    """Format a number with a proper minus sign and no negative zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def no_data(axes: Axes, words: str = "no data") -> None:
    """Say in the middle of the axes that there is nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def error_bars(
    axes: Axes, at: np.ndarray, rows: pd.DataFrame, names: Sequence[str], *, across: bool = False
) -> None:
    """Draw thin intervals from the columns ``names`` (low, high); ``across`` draws them along x."""
    low, high = (rows[name].to_numpy(float) for name in names)
    draw = axes.hlines if across else axes.vlines
    draw(at, low, high, color=BLACK, linewidth=1.1, zorder=3)


def ranked_bars(
    rows: pd.DataFrame,
    value: str,
    label: str,
    *,
    low: str = "low",
    high: str = "high",
    p: str | None = None,
    width: float = 6.4,
) -> Figure:
    """Draw one horizontal bar a component with its interval, coloured by sign.

    Parameters
    ----------
    rows : data frame
        ``component`` and the named columns, in the order from top to bottom.
    value, low, high : str
        Columns.
    label : str
        Words for the value.
    p : str, optional
        Column of adjusted p-values; bars that cannot be told from zero are pale.
    """
    figure, axes = new_figure(width, 0.9 + 0.23 * max(3, len(rows)))
    if rows.empty:
        no_data(axes)
        return figure
    at, values = np.arange(len(rows)), rows[value].to_numpy(float)
    sure = np.ones(len(rows), dtype=bool) if p is None else rows[p].to_numpy(float) < SIGNIFICANT
    colours = [POSITIVE if v >= 0 else NEGATIVE for v in values]
    for shown, alpha in ((sure, 1.0), (~sure, 0.35)):
        if shown.any():
            chosen = [c for c, s in zip(colours, shown, strict=True) if s]
            axes.barh(at[shown], values[shown], color=chosen, alpha=alpha, height=0.72)
    error_bars(axes, at, rows, (low, high), across=True)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(at, rows["component"], fontsize=8)
    axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    return figure


def signed_map(axes: Axes, grid: np.ndarray, *, digits: int = 2) -> AxesImage:
    """Draw values around zero as a map of red and blue, hatched where there is none; small maps print them."""
    most = float(np.nanmax(np.abs(grid), initial=0.0)) or 1.0
    image = axes.imshow(grid, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto", origin="lower")
    axes.grid(False)
    hatch_missing(axes, grid)
    if max(grid.shape) <= PRINTED:
        print_values(axes, grid, np.abs(grid) > 0.62 * most, digits)
    return image


def print_values(axes: Axes, grid: np.ndarray, on_dark: np.ndarray, digits: int) -> None:
    """Print finite values into the cells of a map, white where the cell is dark."""
    # The layout need not measure what lies inside the axes; with all cells that would take half of the drawing.
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if on_dark[row, column] else "black"
            axes.text(
                column, row, minus(value, digits), ha="center", va="center", fontsize=7.5,
                color=colour, in_layout=False,
            )  # fmt: skip


def hatch_missing(axes: Axes, grid: np.ndarray) -> None:
    """Hatch the cells without a value."""
    from matplotlib.patches import Rectangle

    for row, column in np.argwhere(np.isnan(grid)):
        axes.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, facecolor="#f2f2f2", edgecolor="#b0b0b0",
                hatch="///", linewidth=0,
            )
        )  # fmt: skip


def ticks(count: int) -> list[int]:
    """Return at most 16 or so places of ticks among ``count``."""
    return list(range(0, count, max(1, -(-count // 16))))


def layer_axis(axes: Axes, layers: int) -> None:
    """Let y be layers, from the first at the bottom to the last."""
    axes.set(ylabel="layer", yticks=ticks(layers))


def label_points(
    axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], size: float = 7.5
) -> None:
    """Name points, most important first, each at the first place around it that is free; else not at all.

    Call it last: it measures in the limits that the axes have.
    """
    width, height = axes.figure.get_size_inches() * 72
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    place = np.column_stack(
        [
            (np.asarray(x, float) - left) / (right - left) * 0.82 * width,
            (np.asarray(y, float) - bottom) / (top - bottom) * 0.82 * height,
        ]
    )
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in place]
    for i, name in enumerate(names):
        long, tall = 0.62 * size * len(name), 1.25 * size
        for dx, dy, ha, va in _AROUND:
            x0 = place[i, 0] + dx - (0 if ha == "left" else long if ha == "right" else long / 2)
            y0 = place[i, 1] + dy - (0 if va == "bottom" else tall if va == "top" else tall / 2)
            box = (x0, y0, x0 + long, y0 + tall)
            inside = x0 >= 0 and x0 + long <= 0.84 * width and 0 <= y0 <= 0.82 * height - tall
            own = taken[:i] + taken[i + 1 :]
            if inside and not any(_meet(box, other) for other in own):
                axes.annotate(
                    name, (x[i], y[i]), xytext=(dx, dy), textcoords="offset points",
                    ha=ha, va=va, fontsize=size, zorder=5,
                )  # fmt: skip
                taken.append(box)
                break


_AROUND = tuple(
    (far * dx, far * dy, ha, va)
    for far in (1, 2.2, 3.6)
    for dx, dy, ha, va in (
        (6, 0, "left", "center"), (-6, 0, "right", "center"), (0, 6, "center", "bottom"),
        (0, -6, "center", "top"), (5, 5, "left", "bottom"), (-5, 5, "right", "bottom"),
        (5, -5, "left", "top"), (-5, -5, "right", "top"),
    )
)  # fmt: skip


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
