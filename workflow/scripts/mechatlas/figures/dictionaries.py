"""Figures of dictionaries: data frame in, figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.style import SEQUENTIAL, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"


@styled
def frontier(points: pd.DataFrame) -> Figure:
    """Draw variance unexplained against active latents, a line per layer and a marker per dictionary.

    Parameters
    ----------
    points : DataFrame
        `mechatlas.dictionaries.frontier.frontier_table`.
    """
    import matplotlib

    figure, axes = new_figure(6.0, 4.0)
    layers = sorted(points["layer"].unique())
    colours = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.9, len(layers)))
    names = sorted(points["dictionary"].unique())
    for layer, colour in zip(layers, colours, strict=True):
        rows = points[points["layer"] == layer]
        axes.plot(rows["l0"], rows["fvu"], color=colour, linewidth=1, zorder=2)
        for _, row in rows.iterrows():
            marker = MARKERS[names.index(row["dictionary"]) % len(MARKERS)]
            axes.errorbar(
                row["l0"], row["fvu"], yerr=_distances(row, "fvu"), xerr=_distances(row, "l0"),
                color=colour, marker=marker, markersize=5, linewidth=1, zorder=3,
            )  # fmt: skip
    axes.set_xlabel("active latents per token (L0)")
    axes.set_ylabel("fraction of variance unexplained")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    handles = [
        *(
            _handle(colour, "", f"layer {layer}")
            for layer, colour in zip(layers, colours, strict=True)
        ),
        *(_handle("black", MARKERS[i % len(MARKERS)], name) for i, name in enumerate(names)),
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _distances(row: pd.Series, metric: str) -> np.ndarray:
    """Return the distances of an interval's ends from its value, [2, 1]."""
    ends = [row[metric] - row[f"{metric}_low"], row[f"{metric}_high"] - row[metric]]
    return np.clip(np.nan_to_num(ends), 0, None)[:, None]


def _handle(colour: object, marker: str, label: str) -> object:
    from matplotlib.lines import Line2D

    line = "" if marker else "-"
    return Line2D([], [], color=colour, marker=marker or None, linestyle=line, label=label)
