"""Figures of what heads do with the members of a sequence: OV and QK matrices, copy and next scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import DIVERGING, error_bars, no_data
from mechatlas.figures.style import BLUE, GREEN, GREY, ORANGE, journal_size, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = {
    "copy": (BLUE, "the word itself"),
    "next": (ORANGE, "the next member"),
    "ordinal": (GREEN, "the place of the next one"),
}
MATRICES = {
    "ov": ("attended", "promoted", "logit, centred in each row"),
    "qk": ("from the query", "to the key", "match, centred in each row"),
}


@styled
def member_matrices(matrices: pd.DataFrame, components: Sequence[str], kind: str) -> Figure:
    """Draw member-by-member matrices of some heads, each centred in its rows.

    Parameters
    ----------
    matrices : data frame
        lens/matrices.parquet.
    components : sequence of str
    kind : {"ov", "qk"}
    """
    from matplotlib.figure import Figure

    members = list(dict.fromkeys(matrices["attended"]))
    across = min(3, max(1, len(components)))
    down = -(-max(1, len(components)) // across)
    side = max(2.5, min(4.2, 0.9 + 0.2 * len(members)))
    size = journal_size(across * side + 1.0, down * side + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    grids = [_centred(matrices, name, kind, members) for name in components]
    most = max((float(np.abs(grid).max(initial=0)) for grid in grids), default=1.0) or 1.0
    row, column, label = MATRICES[kind]
    for place, panel in enumerate(axes.flat):
        if place >= len(components):
            panel.axis("off")
            if not components:
                no_data(panel)
            continue
        image = panel.imshow(grids[place], cmap=DIVERGING, vmin=-most, vmax=most)
        panel.grid(False)
        panel.set_title(components[place], loc="left", fontsize=9)
        # Names stand at the edges of the grid only: all panels have the same ones.
        left, bottom = place % across == 0, place + across >= len(components)
        names = [member.strip() for member in members]
        places = range(len(members))
        panel.set_xticks(
            places if bottom else [], names if bottom else [], rotation=90, fontsize=6.5
        )
        panel.set_yticks(places if left else [], names if left else [], fontsize=6.5)
        panel.set(ylabel=row if left else "", xlabel=column if bottom else "")
    if components:
        figure.colorbar(image, ax=axes, label=label, shrink=0.9 if down == 1 else 0.6)
    return figure


def _centred(matrices: pd.DataFrame, component: str, kind: str, members: list[str]) -> np.ndarray:
    rows = matrices[matrices["component"] == component]
    wide = rows.pivot(index="attended", columns="promoted", values=kind)
    grid = wide.reindex(index=members, columns=members).to_numpy(float)
    return grid - grid.mean(axis=1, keepdims=True)


def best_heads(
    ov: pd.DataFrame, targets: Sequence[str] = ("copy", "next"), count: int = 3
) -> list[str]:
    """Return the heads with the highest share for each target, best first, each once."""
    names: list[str] = []
    for target in targets:
        rows = ov[(ov["target"] == target) & (ov["sign"] == 1) & (ov["hits"] > 0)]
        rows = rows.sort_values(["share", "median_rank"], ascending=[False, True], kind="stable")
        names += rows["component"].head(count).tolist()
    return list(dict.fromkeys(names))


@styled
def ov_bars(ov: pd.DataFrame, sign: int = 1, count: int = 12) -> Figure:
    """Draw how often each head promotes a member, the next one or its place, among its five most promoted tokens.

    Parameters
    ----------
    ov : data frame
        lens/ov.parquet.
    sign : {1, -1}
        -1: what the head writes against.
    count : int
        Heads with the highest shares.
    """
    rows = ov[ov["sign"] == sign]
    best = rows[rows["hits"] > 0].groupby("component", sort=False)["share"].max()
    names = list(best.sort_values(ascending=False, kind="stable").index[:count])
    targets = [t for t in TARGETS if (rows["target"] == t).any()]
    figure, axes = new_figure(6.8, 1.2 + 0.3 * max(3, len(names)))
    if not names:
        no_data(axes, "no head has a hit")
        return figure
    width = 0.82 / len(targets)
    for i, target in enumerate(targets):
        part = rows[(rows["target"] == target) & rows["component"].isin(names)]
        at = part["component"].map({n: j for j, n in enumerate(names)}).to_numpy(float)
        at = at + (i - (len(targets) - 1) / 2) * width
        colour, words = TARGETS[target]
        axes.barh(at, part["share"], height=0.92 * width, color=colour, label=words)
        error_bars(axes, at, part, ("low", "high"), across=True)
    axes.axvline(
        float(rows["chance"].iloc[0]), color=GREY, linewidth=1.2, linestyle="--", label="chance"
    )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="share of words", xlim=(0, 1.02), ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2)
    return figure
