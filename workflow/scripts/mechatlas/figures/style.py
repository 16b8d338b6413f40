"""One look for all figures, and their byte-stable SVG form."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec

from mechatlas.io import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# The palette of Okabe and Ito (2008), which people with any kind of colour vision can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
GREY = "#767676"
SEQUENTIAL = "cividis"
EXPLANATION = BLUE
#: Colour, marker and words of each control, the explanation itself included.
VARIANTS: dict[str, tuple[str, str, str]] = {
    "none": (EXPLANATION, "o", "explanation"),
    "swapped": (ORANGE, "s", "another head's explanation"),
    "shuffled": (GREEN, "^", "fitted on shuffled rows"),
    "mean_pattern": (PURPLE, "v", "mean pattern of the head"),
    "random_weights": (RED, "D", "model with random weights"),
}
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so widths are the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # no tick labels are above
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mechatlas",
    "pdf.fonttype": 42,  # letters stay letters
}
#: Width of a journal's column and of its page, in inches.
COLUMN, PAGE = 3.35, 6.9
#: What differs in a figure of a journal's width.
JOURNAL = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
}
#: Tables of fonts about how letters change beside each other, and of mathematics.
UNREAD_TABLES = ("GDEF", "GPOS", "GSUB", "MATH", "kern")
_SHORTEST = 0.72  # share of its height that a narrow figure keeps
_width: ContextVar[float | None] = ContextVar("width", default=None)


@contextmanager
def at_width(width: float) -> Iterator[None]:
    """Let figures made inside have a journal's width in inches and its letters, whatever width they ask for."""
    token = _width.set(width)
    try:
        yield
    finally:
        _width.reset(token)


def variant_style(name: str) -> tuple[str, str, str]:
    """Return colour, marker and words of a control; a control that is not known gets grey."""
    return VARIANTS.get(name, (GREY, "x", name.replace("_", " ")))


def in_order(controls: Iterable[str]) -> list[str]:
    """Return controls in the order of `VARIANTS`, those that are not known last."""
    known = list(VARIANTS)
    return sorted(set(controls), key=lambda n: (known.index(n) if n in known else len(known), n))


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give a function that draws a figure the settings of this module."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        matplotlib = _without_help_texts()
        journal = {} if _width.get() is None else JOURNAL
        with matplotlib.rc_context(SETTINGS | journal):
            return function(*args, **kwargs)

    return wrapper


@functools.cache
def _without_help_texts() -> ModuleType:
    """Import matplotlib without the lists of properties in help texts, a fifth of the time that importing takes."""
    import matplotlib.artist

    before, matplotlib.artist.kwdoc = matplotlib.artist.kwdoc, lambda artist: ""
    import matplotlib.figure

    matplotlib.artist.kwdoc = before
    return matplotlib


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches and its axes; inside `at_width` that width comes first.

    No global state of matplotlib is used, so figures need no closing and do not depend on a back end.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=journal_size(width, height), layout="constrained")
    return figure, figure.subplots()


def journal_size(width: float, height: float) -> tuple[float, float]:
    """Return a size in inches, inside `at_width` at that width."""
    wanted = _width.get()
    if wanted is None:
        return width, height
    return wanted, height * min(1.0, max(_SHORTEST, wanted / width))


def svg(figure: Figure) -> str:
    """Return a figure as SVG text: the same bytes for the same figure, and no reference to anything outside."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        # What `savefig` does, without the trial drawing before it: the layout is made in the drawing itself.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :]


def write_figure(
    figure: Figure, svg_path: str | Path, png_path: str | Path, dpi: int = 150
) -> None:
    """Write a figure as SVG and PNG, both the same bytes for the same figure."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    write_text(svg_path, svg(figure))
    with atomic_path(png_path) as temporary, matplotlib.rc_context(SETTINGS), _at(figure, dpi):
        FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})


def write_pdf(figure: Figure, path: str | Path) -> None:
    """Write a figure as PDF: the same bytes for the same figure, so no date and no name of a program."""
    import matplotlib
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    nobody = {"CreationDate": None, "Creator": None, "Producer": None}
    with (
        atomic_path(path) as temporary,
        matplotlib.rc_context(SETTINGS),
        _at(figure, figure.dpi),
        _outlines_alone(),
    ):
        FigureCanvasPdf(figure).print_pdf(temporary, metadata=nobody)


@contextmanager
def _at(figure: Figure, dpi: float) -> Iterator[None]:
    """Let a figure have a resolution for a while, as `Figure.savefig` does, which draws once more, for nobody."""
    before = figure.dpi
    figure.dpi = dpi
    try:
        yield
    finally:
        figure.dpi = before


@contextmanager
def _outlines_alone() -> Iterator[None]:
    """Let fonts be put into a PDF without their tables about scripts and ligatures.

    The letters stand at their places already, so that nobody reads these tables, and cutting them down to the letters
    that are used takes longer than drawing the figure.
    """
    from fontTools.subset import Options

    # A private name of fontTools: under another one only the time is lost.
    before = getattr(Options, "_drop_tables_default", [])
    Options._drop_tables_default = [*before, *UNREAD_TABLES]
    try:
        yield
    finally:
        Options._drop_tables_default = before
