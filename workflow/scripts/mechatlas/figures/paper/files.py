"""Figures of a paper as files: SVG, PDF and PNG, the data behind each as CSV, and all captions in one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechatlas.figures.paper.fit import fit
from mechatlas.figures.style import at_width, write_figure, write_pdf
from mechatlas.io import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 300
CAPTIONS = "captions.json"


@dataclass(frozen=True)
class Drawn:
    """A figure of a paper.

    Attributes
    ----------
    name : str
        Of its files.
    figure : Figure
    data : data frame
        What is drawn.
    caption : str
        What is shown, in which unit, over how many.
    """

    name: str
    figure: Figure
    data: pd.DataFrame
    caption: str


def drawn_at(width: float, function: Callable[..., Figure], *args: Any, **kwargs: Any) -> Figure:
    """Return a figure that is drawn at a journal's width (inches) and fitted to it."""
    with at_width(width):
        return fit(function(*args, **kwargs))


def write_drawn(folder: str | Path, figures: Iterable[Drawn], facts: Mapping[str, Any]) -> None:
    """Write figures into a folder, each as soon as it is drawn, with their captions in ``captions.json``.

    Parameters
    ----------
    folder : path
    figures : iterable of Drawn
        Names are unique.
    facts : mapping
        Provenance.
    """
    folder, captions = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for drawn in figures:
        if drawn.name in captions:
            raise ValueError(f"two figures are named {drawn.name}")
        captions[drawn.name] = drawn.caption
        path = folder / drawn.name
        # The names of units have points in them, so no suffix is replaced.
        write_figure(drawn.figure, f"{path}.svg", f"{path}.png", DPI)
        write_pdf(drawn.figure, f"{path}.pdf")
        write_csv(f"{path}.csv", drawn.data)
    write_json(folder / CAPTIONS, captions, facts)


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, numbers with the six digits that mean something."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
