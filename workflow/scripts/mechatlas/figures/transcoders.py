"""Figures of cross-layer transcoders: data frame in, figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.style import BLUE, GREEN, GREY, ORANGE, SETTINGS, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour, marker and words of each kind of decoder.
DECODERS = {
    "cross": (BLUE, "o", "cross-layer"),
    "per_layer": (ORANGE, "s", "one for each layer"),
    "tied": (GREEN, "^", "cross-layer, tied"),
}
PANELS = {
    "fvu": "fraction of variance unexplained",
    "kl": "KL(model || replacement), nats",
    "replacement_corrected": "replacement score",
}


@styled
def sweep_frontier(points: pd.DataFrame) -> Figure:
    """Draw error, divergence and replacement score against active features, a line for each kind of transcoder.

    Parameters
    ----------
    points : DataFrame
        `mechatlas.circuits.graphs.sweep.sweep_table`: a small dot for each seed with its interval over documents (over
        prompts for the score), a line through the means over seeds.
    """
    shown = {name: words for name, words in PANELS.items() if name in points}
    figure = _new(3.0 * len(shown) + 0.4, 3.4)
    for axes, (metric, words) in zip(
        np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True
    ):
        for kind, rows in points.groupby("decoders"):
            colour, marker, name = DECODERS[kind]
            ends = np.stack([rows[metric] - rows[f"{metric}_low"], rows[f"{metric}_high"] - rows[metric]])  # fmt: skip
            axes.errorbar(
                rows["l0"], rows[metric], yerr=np.clip(np.nan_to_num(ends), 0, None), fmt=marker,
                color=colour, markersize=3, linewidth=0.8, alpha=0.6,
            )  # fmt: skip
            means = rows.groupby("value")[["l0", metric]].mean().sort_values("l0")
            axes.plot(means["l0"], means[metric], color=colour, linewidth=1.6, label=name)
        axes.set(xlabel="active features per layer and token (L0)", title=words, xlim=(0, None))
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
