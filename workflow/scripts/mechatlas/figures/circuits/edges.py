"""Figures of edge methods: faithfulness curves and the agreement of estimates with exact effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import no_data
from mechatlas.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = {
    "exact": (BLACK, "D", "exact effects"),
    "eap": (BLUE, "o", "EAP"),
    "eap-ig-inputs": (ORANGE, "s", "EAP-IG, inputs"),
    "eap-ig-activations": (GREEN, "^", "EAP-IG, activations"),
}


def method_style(name: str) -> tuple[str, str, str]:
    """Return colour, marker and words of an edge method; one that is not known gets purple."""
    return METHODS.get(name, (PURPLE, "x", name))


@styled
def faithfulness_curves(curve: pd.DataFrame, *, signed: bool = False) -> Figure:
    """Draw the faithfulness of the strongest edges by their share, per method, with random sets as a band.

    Parameters
    ----------
    curve : data frame
        edges/curve.parquet.
    signed : bool
        Which ranking to draw: by signed score or by strength.
    """
    rows = curve[curve["signed"].astype(bool) == signed]
    figure, axes = new_figure(6.8, 4.0)
    known = [
        m
        for m in (*METHODS, *sorted(set(rows["method"]) - set(METHODS)))
        if (rows["method"] == m).any()
    ]
    for method in known:
        part = rows[rows["method"] == method].sort_values("share")
        colour, marker, words = method_style(method)
        at = 100 * part["share"]
        axes.fill_between(at, part["low"], part["high"], color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            at, part["faithfulness"], marker, color=colour, linestyle="-", markersize=4, label=words
        )
    for level in (0, 1):
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
    if known:
        _random_band(axes, rows)
        axes.set_xscale("log")
        places = [
            t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t >= 99 * rows["share"].min()
        ]
        axes.set_xticks(places, [f"{t:g}" for t in places])
        axes.minorticks_off()
        finite = rows["faithfulness"].to_numpy(float)
        axes.set_ylim(
            max(-1.0, np.nanmin(finite, initial=0) - 0.15),
            min(2.5, np.nanmax(finite, initial=1) + 0.15),
        )
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    else:
        no_data(axes)
    axes.set(
        xlabel="edges in the circuit (% of all, logarithmic)",
        ylabel="faithfulness (0: no edge, 1: all)",
    )
    return figure


def _random_band(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the band of the first method that has one."""
    rows = rows[rows["random"].notna()]
    if rows.empty:
        return
    rows = rows[rows["method"] == rows["method"].iloc[0]].sort_values("share")
    at = 100 * rows["share"]
    axes.fill_between(
        at, rows["random_low"], rows["random_high"], color=GREY, alpha=0.25, linewidth=0,
        label="random edges, 95 % band",
    )  # fmt: skip
    axes.plot(at, rows["random"], color=GREY, linewidth=1.2, linestyle=":")


@styled
def agreement_bars(agreement: pd.DataFrame) -> Figure:
    """Draw the rank correlation of each estimate with the exact effects, over all edges and by what reads.

    Parameters
    ----------
    agreement : data frame
        edges/agreement.parquet.
    """
    kinds = [k for k in ("all", "q", "k", "v", "mlp", "logits") if (agreement["kind"] == k).any()]
    methods = [m for m in METHODS if (agreement["method"] == m).any()]
    figure, axes = new_figure(6.4, 3.2)
    width = 0.8 / max(1, len(methods))
    for i, method in enumerate(methods):
        part = agreement[agreement["method"] == method].set_index("kind")["spearman"]
        at = np.arange(len(kinds)) + (i - (len(methods) - 1) / 2) * width
        colour, _, words = method_style(method)
        axes.bar(at, part.reindex(kinds), width=0.92 * width, color=colour, label=words)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set_xticks(range(len(kinds)), [{"mlp": "MLP"}.get(k, k) for k in kinds])
    axes.set(
        xlabel="edges into",
        ylabel="rank correlation with exact effects",
        ylim=(min(0, agreement["spearman"].min() - 0.05) if len(agreement) else 0, 1.02),
    )
    axes.grid(axis="x", visible=False)
    if methods:
        figure.legend(loc="outside upper left", ncols=3)
    else:
        no_data(axes)
    return figure
