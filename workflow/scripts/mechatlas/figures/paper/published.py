"""Published numbers beside ours, in figures and in the data behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import TASK_COLOURS, no_data
from mechatlas.figures.style import BLACK, GREY, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("task", "quantity", "item", "ours", "published", "difference", "source")


class Published:
    """Our numbers beside published ones, by task and quantity.

    Parameters
    ----------
    table : data frame, optional
        circuits/published.parquet; nothing is published without it.
    """

    def __init__(self, table: pd.DataFrame | None = None) -> None:
        self.table = pd.DataFrame(columns=list(COLUMNS)) if table is None else table

    def __bool__(self) -> bool:
        return not self.table.empty

    def of(self, task: str, quantity: str) -> pd.DataFrame:
        """Return ``published`` and ``difference`` (ours - published) by item."""
        table = self.table
        rows = table[(table["task"] == task) & (table["quantity"] == quantity)]
        return rows.drop_duplicates("item").set_index("item")[["published", "difference"]]

    def beside(
        self, data: pd.DataFrame, task: str, quantity: str, key: str = "component"
    ) -> pd.DataFrame:
        """Return data with the columns ``published`` and ``difference``, if there is any such number for the task."""
        found = self.of(task, quantity)
        return data.join(found, on=key) if len(found) else data

    def values(self, task: str, quantity: str) -> dict[str, float]:
        """Return the published numbers by item."""
        return self.of(task, quantity)["published"].to_dict()


def mark(axes: Axes, values: Mapping[str, float], *, across: bool = True) -> bool:
    """Mark published values as hollow diamonds on the bars with these names; return whether there were any.

    Parameters
    ----------
    axes : Axes
        Bars whose tick labels are names.
    values : mapping
        In the unit of the figure.
    across : bool
        Whether bars lie (names on y) or stand (names on x).
    """
    axis = axes.yaxis if across else axes.xaxis
    names = [label.get_text() for label in axis.get_ticklabels()]
    at = [
        (place, values[n])
        for place, n in zip(axis.get_ticklocs(), names, strict=True)
        if n in values
    ]
    if not at:
        return False
    places, known = np.array(at, dtype=float).T
    x, y = (known, places) if across else (places, known)
    (points,) = axes.plot(
        x, y, "D", markerfacecolor="none", markeredgecolor=BLACK, markersize=3.5, markeredgewidth=0.8,
        zorder=6, label="published",
    )  # fmt: skip
    if axes.figure.legends:
        old = axes.figure.legends[0]
        handles = [*old.legend_handles, points]
        labels = [*(text.get_text() for text in old.get_texts()), "published"]
        old.remove()
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=3)
    else:
        axes.figure.legend([points], ["published"], loc="outside upper left")
    return True


@styled
def agreement(table: pd.DataFrame) -> Figure:
    """Draw our percentages against published ones, a colour for each quantity, with the line where they are alike.

    Parameters
    ----------
    table : data frame
        circuits/published.parquet.
    """
    rows = table[table["quantity"].str.contains("percent") & table["ours"].notna()]
    figure, axes = new_figure(6.4, 3.6)
    if rows.empty:
        no_data(axes, "no percentage is published")
        return figure
    for number, (quantity, part) in enumerate(rows.groupby("quantity", sort=True)):
        axes.plot(
            part["published"], part["ours"], "os^vD"[number % 5], markersize=3, alpha=0.7,
            color=TASK_COLOURS[number % len(TASK_COLOURS)], label=f"{quantity} ({len(part)})",
        )  # fmt: skip
    both = np.concatenate([rows["published"].to_numpy(float), rows["ours"].to_numpy(float)])
    ends = [min(0.0, both.min()), max(100.0, both.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.set(xlabel="published (%)", ylabel="here (%)")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def pairs(data: pd.DataFrame) -> Figure:
    """Draw numbers here beside published ones, a row for each.

    Parameters
    ----------
    data : data frame
        ``quantity``, ``ours``, ``published``.
    """
    figure, axes = new_figure(6.4, 0.9 + 0.4 * max(1, len(data)))
    at = np.arange(len(data))
    axes.hlines(at, data["ours"], data["published"], color=GREY, linewidth=1)
    axes.plot(data["ours"], at, "o", color=TASK_COLOURS[0], markersize=4, label="here")
    axes.plot(
        data["published"], at, "D", markerfacecolor="none", markeredgecolor=BLACK, markersize=4, label="published",
    )  # fmt: skip
    axes.set_yticks(at, data["quantity"])
    axes.set(ylim=(len(data) - 0.5, -0.5), xlim=(0, None))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=2)
    return figure
