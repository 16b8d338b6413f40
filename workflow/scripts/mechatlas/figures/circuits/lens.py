"""Figures of the logit lens: what the model would say after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import no_data, ticks
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
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIXED = {"answer": (BLUE, "o"), "wrong": (RED, "s")}
OTHERS = (ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK, GREY)
MARKERS = "^vDPX*<"
SHOWN = 7  # tokens in one figure
PANELS = {
    "probability": "probability (mean)",
    "rank": "rank (mean; 0 is best)",
}


@styled
def lens_curves(
    table: pd.DataFrame, panel: str, *, norm: str = "final", tokens: Sequence[str] | None = None
) -> Figure:
    """Draw probability or rank of the answer and of distractors after each layer, with intervals.

    Parameters
    ----------
    table : data frame
        lens/logit_lens.parquet.
    panel : {"probability", "rank"}
    norm : {"final", "raw"}
    tokens : sequence of str, optional
        All by default, up to `SHOWN`.
    """
    rows = table[(table["norm"] == norm) & (table["point"] != "resid_mid")]
    known = list(dict.fromkeys(rows["token"])) if tokens is None else list(tokens)
    layers = int(rows["layer"].max()) + 1 if len(rows) else 1
    figure, axes = new_figure(max(5.6, min(12.0, 2.4 + 0.42 * layers)), 3.7)
    if rows.empty:
        no_data(axes)
        return figure
    for name, (colour, marker) in _styles(known).items():
        part = rows[rows["token"] == name].sort_values("layer")
        axes.fill_between(
            part["layer"], part[f"{panel}_low"], part[f"{panel}_high"], color=colour, alpha=0.18, linewidth=0,
        )  # fmt: skip
        axes.plot(part["layer"], part[panel], marker + "-", color=colour, markersize=4, label=name)
    _axes(axes, panel, layers)
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.4)
    return figure


def _styles(tokens: Sequence[str]) -> dict[str, tuple[str, str]]:
    styles, free = {}, iter(zip(OTHERS, MARKERS, strict=True))
    for name in tokens[:SHOWN]:
        styles[name] = FIXED[name] if name in FIXED else next(free)
    return styles


def _axes(axes: Axes, panel: str, layers: int) -> None:
    places = [t for t in ticks(layers) if t > 0 or layers <= 16]
    axes.set_xticks([-1, *places], ["embed", *map(str, places)])
    axes.set(xlabel="after layer", ylabel=PANELS[panel])
    if panel == "rank":
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.15)
        axes.invert_yaxis()
        top = [t for t in (0, 1, 10, 100, 1000, 10000, 100000) if t <= 2 * axes.get_ylim()[0]]
        axes.set_yticks(top, [f"{t:,}".replace(",", " ") for t in top])
        axes.minorticks_off()
    else:
        axes.set_ylim(-0.02, 1.02)


@styled
def transition_bars(transitions: pd.DataFrame) -> Figure:
    """Draw, block by block, the share of prompts in which the member before the answer gives way to the answer.

    Parameters
    ----------
    transitions : data frame
        lens/transitions.parquet.
    """
    layers = len(transitions)
    figure, axes = new_figure(max(5.6, min(12.0, 2.2 + 0.5 * layers)), 3.3)
    if transitions.empty:
        no_data(axes, "no sequence")
        return figure
    bars = {"exact": (BLUE, "exactly the member before"), "earlier": (SKY, "any earlier member")}
    known = [name for name in bars if name in transitions]
    width = 0.8 / len(known)
    for i, name in enumerate(known):
        at = transitions["layer"].to_numpy(float) + (i - (len(known) - 1) / 2) * width
        colour, words = bars[name]
        axes.bar(at, transitions[f"{name}_share"], width=0.95 * width, color=colour, label=words)
        axes.vlines(
            at, transitions[f"{name}_low"], transitions[f"{name}_high"], color=BLACK, linewidth=1.1
        )
    share = transitions["answer"] / transitions["prompts"]
    axes.plot(
        transitions["layer"],
        share,
        "D",
        color=ORANGE,
        markersize=4,
        label="the answer is on top after it",
    )
    axes.set(
        xlabel="layer", ylabel="share of prompts", ylim=(0, 1.03), xticks=np.array(ticks(layers))
    )
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)
    return figure
