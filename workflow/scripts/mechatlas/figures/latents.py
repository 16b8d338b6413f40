"""Figures of latents: data frame in, figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colour, marker and words of each control of latents, the explanation itself included.
VARIANTS: dict[str, tuple[str, str, str]] = {
    "none": (BLUE, "o", "explanation"),
    "token_lookup": (SKY, "P", "token look-up (baseline)"),
    "true_activity": (GREEN, "*", "true activity (reference)"),
    "swapped": (ORANGE, "s", "another latent's explanation"),
    "shuffled": (GREEN, "^", "fitted on shuffled activations"),
    "random_direction": (PURPLE, "v", "random direction"),
    "random_weights": (RED, "D", "model with random weights"),
}
#: Up to this many latents an axis names them.
NAMED = 80


def variant_words(name: str) -> str:
    """Return the words of a control."""
    return VARIANTS[name][2] if name in VARIANTS else name.replace("_", " ")


def in_order(controls: object) -> list[str]:
    """Return controls in the order of `VARIANTS`, those that are not known last."""
    known = list(VARIANTS)
    return sorted(set(controls), key=lambda n: (known.index(n) if n in known else len(known), n))


@styled
def density_histogram(statistics: pd.DataFrame) -> Figure:
    """Draw how many latents of each layer are active on what share of train tokens.

    Parameters
    ----------
    statistics : data frame
        latent_stats.parquet.
    """
    train = statistics[(statistics["split"] == "train") & ~statistics["dead"]]
    figure, axes = new_figure(7.2, 3.4)
    edges = np.arange(-6, 0.01, 0.25)
    layers = sorted(train["layer"].unique())
    for place, layer in enumerate(layers):
        rates = np.log10(train.loc[train["layer"] == layer, "firing_rate"])
        counts, _ = np.histogram(np.clip(rates, edges[0], edges[-1]), edges)
        shade = (place + 1) / (len(layers) + 0.5)
        axes.stairs(counts, edges, label=f"layer {layer}", color=_shade(shade), linewidth=1.5)
    axes.set(xlabel="share of train tokens on which a latent is active", ylabel="latents")
    ticks = range(-6, 1)
    axes.set_xticks(list(ticks), [f"$10^{{{tick}}}$" for tick in ticks])
    used = np.log10(train["firing_rate"].min()) if len(train) else -4
    axes.set_xlim(max(-6, np.floor(used)), 0)
    axes.legend(loc="upper right", fontsize=8)
    return figure


def _shade(share: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["cividis"](share)


@styled
def latent_scores(scores: pd.DataFrame, metric: str, label: str) -> Figure:
    """Draw each latent's score with its interval, best first, and the same score of each control.

    Parameters
    ----------
    scores : data frame
        scores.parquet of one explainer.
    metric, label : str
    """
    rows = scores[(scores["metric"] == metric) & scores["value"].notna()]
    own = rows[rows["control"] == "none"].sort_values(
        ["value", "layer", "latent"], ascending=[False, True, True]
    )
    figure, axes = new_figure(max(6.4, min(14.0, 1.2 + 0.21 * len(own))), 4.2)
    place = {unit: i for i, unit in enumerate(own["unit"])}
    for control in in_order(set(rows["control"]) - {"none"}):
        points = rows[(rows["control"] == control) & rows["unit"].isin(place)]
        colour, marker, words = VARIANTS.get(control, (GREY, "x", control))
        at = points["unit"].map(place)
        axes.vlines(at, points["low"], points["high"], color=colour, linewidth=0.8, alpha=0.45)
        axes.plot(at, points["value"], marker, color=colour, markersize=4, label=words)
    colour, marker, words = VARIANTS["none"]
    at = np.arange(len(own))
    axes.vlines(at, own["low"], own["high"], color=colour, linewidth=1.6)
    axes.plot(at, own["value"], marker, color=colour, markersize=4.4, label=words)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.8, max(len(own), 1) - 0.2)
    if len(own) <= NAMED:
        axes.set_xticks(at, own["unit"], rotation=90, fontsize=7)
    else:
        axes.set(xticks=[], xlabel=f"{len(own)} latents, best explained first")
    axes.axhline(0.5 if "auc" in metric else 0, color=GREY, linewidth=0.8, linestyle=":")
    # Intervals that reach far out are cut, so that the latents stay apart.
    low = float(np.nanmin(rows["value"])) if len(rows) else 0.0
    high = float(np.nanmax(rows["value"])) if len(rows) else 1.0
    axes.set(ylabel=label, ylim=(max(low, -1.2) - 0.06, max(min(high, 1.5), 1.0) + 0.05))
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.3)
    return figure


@styled
def score_by_layer(scores: pd.DataFrame, metric: str, label: str) -> Figure:
    """Draw the distribution of a score over latents, by layer and control (one dot a latent, bar at the mean)."""
    rows = scores[(scores["metric"] == metric) & scores["value"].notna()]
    names = in_order({"none", *rows["control"]})
    layers = sorted(rows["layer"].unique())
    figure, axes = new_figure(max(6.4, 1.6 + 1.3 * len(layers)), 3.6)
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        colour, marker, words = VARIANTS.get(name, (GREY, "x", name))
        for at, layer in enumerate(layers):
            mine = rows[(rows["control"] == name) & (rows["layer"] == layer)]
            values = np.sort(mine["value"].to_numpy(float))
            middle = at + (place - (len(names) - 1) / 2) * width
            spread = ((np.arange(len(values)) * 0.382) % 1 - 0.5) * 0.6 * width
            shown = np.clip(values, -1.2, 1.5)
            label_ = words if at == 0 else None
            axes.plot(
                middle + spread,
                shown,
                marker,
                color=colour,
                markersize=3.2,
                alpha=0.7,
                label=label_,
            )
            if len(values):
                axes.hlines(
                    np.clip(values.mean(), -1.2, 1.5), middle - 0.4 * width, middle + 0.4 * width,
                    color="black", linewidth=1.6, zorder=3,
                )  # fmt: skip
    axes.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    axes.grid(axis="x", visible=False)
    axes.set(ylabel=label)
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.3)
    return figure
