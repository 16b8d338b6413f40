"""Figures of attention in a task's prompts: mean patterns, and attention from role to role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import error_bars, no_data
from mechatlas.figures.style import BLUE, GREY, ORANGE, SEQUENTIAL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPEATED = {
    "previous_token": "token before",
    "duplicate_token": "same token, earlier",
    "induction": "token after the same one",
}


@styled
def mean_pattern(
    patterns: pd.DataFrame, component: str, roles: Sequence[tuple[str, str]] = ()
) -> Figure:
    """Draw the mean attention pattern of a head over prompts of one template.

    Parameters
    ----------
    patterns : data frame
        lens/patterns.parquet.
    component : str
        A head.
    roles : sequence of (str, str)
        Query and key roles whose cells are framed.
    """
    rows = patterns[patterns["component"] == component]
    length = int(rows["query"].max()) + 1
    grid = np.full((length, length), np.nan)
    grid[rows["query"], rows["key"]] = rows["attention"]
    size = max(4.0, min(9.0, 1.7 + 0.19 * length))
    figure, axes = new_figure(size + 0.9, size)
    image = axes.imshow(grid, cmap=SEQUENTIAL, vmin=0, vmax=1)
    axes.grid(False)
    labels = _labels(rows, length)
    axes.set_xticks(range(length), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(length), labels, fontsize=7)
    axes.set(xlabel="key", ylabel="query")
    axes.set_title(component, loc="left")
    frame_cells(axes, labels, roles)
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    return figure


def _labels(rows: pd.DataFrame, length: int) -> list[str]:
    """Return what stands at each position, special characters spelled out."""
    from mechatlas.figures.html import visible_characters

    names = rows.drop_duplicates("query").set_index("query")["query_label"]
    return [visible_characters(str(names[t])).strip() or "␣" for t in range(length)]


def frame_cells(axes: Axes, labels: Sequence[str], roles: Sequence[tuple[str, str]]) -> None:
    """Frame the cells of query and key roles, and set their tick labels in bold."""
    from matplotlib.patches import Rectangle

    place = {name: at for at, name in enumerate(labels)}
    marked: set[int] = set()
    for query, key in roles:
        if query in place and key in place and place[key] <= place[query]:
            q, k = place[query], place[key]
            marked |= {q, k}
            axes.add_patch(
                Rectangle((k - 0.5, q - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2)
            )
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for at in sorted(marked):
            ticks[at].set_fontweight("bold")


def salient_roles(attention: pd.DataFrame, component: str, count: int = 4) -> list[tuple[str, str]]:
    """Return the pairs of different roles between which a head attends most, above three times chance."""
    rows = attention[(attention["component"] == component) & (attention["query"] != "repeated")]
    rows = rows[(rows["query"] != rows["key"]) & (rows["attention"] > 3 * rows["chance"])]
    rows = rows.sort_values("attention", ascending=False, kind="stable").head(count)
    return list(zip(rows["query"], rows["key"], strict=True))


@styled
def role_attention_bars(attention: pd.DataFrame, count: int = 14) -> Figure:
    """Draw the strongest attention between different roles, with intervals and what looking everywhere would give.

    Parameters
    ----------
    attention : data frame
        lens/attention.parquet.
    count : int
        Pairs of head and roles.
    """
    rows = attention[(attention["query"] != "repeated") & (attention["query"] != attention["key"])]
    rows = rows.sort_values("attention", ascending=False, kind="stable").head(count)
    names = [f"{r.component}: {r.query} → {r.key}" for r in rows.itertuples()]
    return _bars(rows, names)


@styled
def repeated_token_bars(attention: pd.DataFrame, count: int = 4) -> Figure:
    """Draw the heads that attend most to each place on repeated random tokens, with intervals and chance."""
    rows = attention[attention["query"] == "repeated"]
    parts = [
        rows[rows["key"] == key]
        .sort_values("attention", ascending=False, kind="stable")
        .head(count)
        for key in REPEATED
    ]
    rows = pd.concat(parts)
    return _bars(rows, [f"{r.component}: {REPEATED[r.key]}" for r in rows.itertuples()])


def _bars(rows: pd.DataFrame, names: Sequence[str]) -> Figure:
    figure, axes = new_figure(6.8, 1.1 + 0.23 * max(3, len(rows)))
    if rows.empty:
        no_data(axes)
        return figure
    at = np.arange(len(rows))
    axes.barh(at, rows["attention"], color=BLUE, height=0.72)
    error_bars(axes, at, rows, ("low", "high"), across=True)
    axes.plot(
        rows["chance"],
        at,
        "|",
        color=GREY,
        markersize=9,
        markeredgewidth=2,
        label="uniform attention",
    )
    axes.set_yticks(at, names, fontsize=8)
    axes.set(xlabel="mean attention", xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left")
    return figure
