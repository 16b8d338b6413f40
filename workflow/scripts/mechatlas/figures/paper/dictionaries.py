"""The dictionaries of one model and source as figures of a paper: frontier, training, latents, explanations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechatlas.figures.circuits.common import no_data
from mechatlas.figures.dictionaries import frontier
from mechatlas.figures.latents import VARIANTS, density_histogram
from mechatlas.figures.paper.files import Drawn, drawn_at
from mechatlas.figures.paper.scores import score_figures
from mechatlas.figures.style import COLUMN, SEQUENTIAL, new_figure, styled
from mechatlas.io import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 10  # steps of a running mean


@dataclass(frozen=True)
class DictionaryFiles:
    """The files of one dictionary.

    Attributes
    ----------
    evaluation : path
    training : path, optional
        None for a dictionary that others made.
    statistics, scores : path
        latent_stats.parquet and scores.parquet of its latents.
    """

    evaluation: str | Path
    training: str | Path | None
    statistics: str | Path
    scores: str | Path


def dictionary_figures(
    points: pd.DataFrame, files: Mapping[str, DictionaryFiles]
) -> Iterator[Drawn]:
    """Draw the frontier of all dictionaries, and for each one its training, its latents and their explanations.

    Parameters
    ----------
    points : data frame
        frontier.parquet.
    files : mapping of str to DictionaryFiles
        By the name of the dictionary.
    """
    tokens = max(int(read_table(entry.evaluation)["tokens"].max()) for entry in files.values())
    yield Drawn(
        "frontier",
        drawn_at(COLUMN, frontier, points),
        points,
        f"Fraction of variance unexplained (no unit) against active latents per token on {tokens} test tokens, a point "
        "for each dictionary and layer. Lines at points are bootstrap intervals over documents.",
    )
    for name, entry in files.items():
        if entry.training is not None:
            yield training_figure(name, read_table(entry.training), "latents")
        statistics = read_table(entry.statistics)
        train = statistics[statistics["split"] == "train"]
        yield Drawn(
            f"{name}_density",
            drawn_at(COLUMN, density_histogram, statistics),
            train[["layer", "latent", "firing_rate", "dead"]],
            f"Share of {int(train['tokens'].max())} train tokens on which a latent of {name} is active, for "
            f"{int((~train['dead']).sum())} alive ({int(train['dead'].sum())} are not). Four bins to a factor of ten.",
        )
        for metric, words in (
            ("correlation", "correlation"),
            ("correlation_top_and_random", "correlation, top and random"),
        ):
            yield from score_figures(
                read_table(entry.scores), metric, words, "latents", VARIANTS, name
            )


def training_figure(name: str, training: pd.DataFrame, units: str) -> Drawn:
    """Draw how a dictionary's error falls in training, layer by layer."""
    return Drawn(
        f"{name}_training",
        drawn_at(COLUMN, training_curves, training),
        training[["step", "layer", "fvu", "l0", "dead_share"]],
        f"Fraction of variance unexplained (no unit) of the batches in training {name}, by step, running mean over "
        f"{SMOOTHED} steps; {int(training['step'].max())} steps, a line for each layer, {units} as configured.",
    )


@styled
def training_curves(training: pd.DataFrame) -> Figure:
    """Draw the fraction of variance unexplained by training step, a line per layer.

    Parameters
    ----------
    training : data frame
        training.parquet.
    """
    import matplotlib

    figure, axes = new_figure(5.0, 3.4)
    if training.empty:
        no_data(axes)
        return figure
    layers = sorted(training["layer"].unique())
    for layer, colour in zip(
        layers, matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.9, len(layers))), strict=True
    ):
        rows = training[training["layer"] == layer].sort_values("step")
        means = rows["fvu"].rolling(SMOOTHED, min_periods=1).mean()
        axes.plot(rows["step"], means, color=colour, linewidth=1.1, label=f"layer {layer}")
    axes.set(xlabel="step", ylabel="fraction of variance unexplained", ylim=(0, 1.02))
    figure.legend(loc="outside upper left", ncols=4)
    return figure
