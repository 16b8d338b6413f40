"""Scores of explanations over many units: histograms and trends over layers, as Bills et al. 2023 show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import no_data
from mechatlas.figures.paper.files import Drawn, drawn_at
from mechatlas.figures.style import BLUE, COLUMN, GREY, PURPLE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colour, marker and words by control.
Styles = Mapping[str, tuple[str, str, str]]
BINS = np.linspace(-1, 1, 41)
_OTHER = (PURPLE, "x")


def _known(rows: pd.DataFrame, styles: Styles) -> list[str]:
    found = set(rows["control"])
    return [*(n for n in styles if n in found), *sorted(found - set(styles))]


def _style(name: str, styles: Styles) -> tuple[str, str, str]:
    return styles[name] if name in styles else (*_OTHER, name.replace("_", " "))


@styled
def score_histogram(rows: pd.DataFrame, label: str, styles: Styles) -> Figure:
    """Draw how many units have which score: explanations as bars, controls as outlines, means as ticks above.

    Parameters
    ----------
    rows : data frame
        ``control`` and ``value`` of one metric; values below -1 count at -1.
    label : str
        Words for the score.
    styles : mapping
        Colour, marker and words of each control; ``none`` is the explanation.
    """
    figure, axes = new_figure(5.0, 3.4)
    if rows.empty:
        no_data(axes)
        return figure
    highest = 0
    for name in _known(rows, styles):
        colour, _, words = _style(name, styles)
        values = np.clip(rows.loc[rows["control"] == name, "value"], -1, 1)
        counts, _ = np.histogram(values, BINS)
        highest = max(highest, counts.max())
        own = name == "none"
        axes.stairs(
            counts, BINS, fill=own, color=colour, alpha=0.45 if own else 1.0, linewidth=1.1,
            label=f"{words} ({values.mean():.2f})",
        )  # fmt: skip
    lowest = float(np.floor(10 * np.clip(rows["value"].min(), -1, 0)) / 10)
    axes.set(xlabel=label, ylabel="units", xlim=(lowest, 1.0), ylim=(0, 1.08 * highest))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def layer_trend(rows: pd.DataFrame, label: str, styles: Styles) -> Figure:
    """Draw the mean score of the units of each layer, the units of explanations as dots.

    Parameters
    ----------
    rows : data frame
        ``control``, ``layer`` and ``value`` of one metric.
    label : str
    styles : mapping
        As of `score_histogram`.
    """
    figure, axes = new_figure(5.0, 3.4)
    if rows.empty:
        no_data(axes)
        return figure
    for name in _known(rows, styles):
        colour, marker, words = _style(name, styles)
        mine = rows[rows["control"] == name]
        if name == "none":
            shift = 0.12 * (((np.arange(len(mine)) * 0.382) % 1) - 0.5)
            axes.plot(
                mine["layer"] + shift, mine["value"], ".", color=BLUE, alpha=0.35, markersize=3
            )
        means = mine.groupby("layer")["value"].mean()
        axes.plot(
            means.index, means, marker, color=colour, linestyle="-", markersize=3.5, label=words
        )
    layers = sorted(rows["layer"].unique())
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_xticks(layers, [str(layer) for layer in layers])
    axes.set(xlabel="layer", ylabel=label, ylim=(max(-1.05, rows["value"].min() - 0.05), 1.05))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def score_figures(
    scores: pd.DataFrame, metric: str, words: str, units: str, styles: Styles, prefix: str
) -> Iterator[Drawn]:
    """Draw histogram and layer trend of one metric for every explainer.

    Parameters
    ----------
    scores : data frame
        scores.parquet.
    metric, words : str
        The score, and what it is called.
    units : str
        Such as ``heads``.
    styles : mapping
    prefix : str
        Of the figures' names.
    """
    rows = scores[(scores["metric"] == metric) & scores["value"].notna()]
    several = rows["explainer"].nunique() > 1
    for explainer, part in rows.groupby("explainer", sort=True):
        own = part[part["control"] == "none"]
        documents = int(own["documents"].median()) if len(own) else 0
        count = f"{len(own)} {units} on test documents (median {documents} a unit), explained by {explainer}"
        data = part[["unit", "layer", "control", "value", "low", "high", "documents"]]
        tail = f"_{explainer}" if several else ""
        yield Drawn(
            f"{prefix}_histogram_{metric}{tail}",
            drawn_at(COLUMN, score_histogram, part, words, styles),
            data,
            f"{words} of {count}: how many have which score, beside that of the controls. In brackets: means. "
            "No unit; 1 is best.",
        )
        means = part.groupby(["layer", "control"], as_index=False)["value"].agg(["mean", "count"])
        yield Drawn(
            f"{prefix}_layers_{metric}{tail}",
            drawn_at(COLUMN, layer_trend, part, words, styles),
            means,
            f"Mean {words} by layer of {count}; dots: single {units}. No unit; 1 is best.",
        )
