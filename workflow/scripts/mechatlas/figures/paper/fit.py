"""Fit a figure to its width: letters, legends, printed values and tick labels that would not find room.

Drawings are made for pages of their own width. Here they get the letters of a journal, and what does not fit is made
smaller, broken into more rows or thinned out. Afterwards the layout is fixed, so that it is computed once for all
formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

LARGEST = 6.5  # points, of letters in a drawing
SMALLEST = 4.0  # smaller ones are left out
TITLE = 7.0
_HANDLE = 2.7  # widths of a letter that a legend's mark and its gaps take
_GAP = 1.2


def fit(figure: Figure, largest: float = LARGEST) -> Figure:
    """Fit what is in a figure to its size and fix its layout.

    Parameters
    ----------
    figure : Figure
    largest : float
        Letters in the drawing are at most so many points high.

    Returns
    -------
    Figure
        The same one.
    """
    for text in _texts(figure):
        text.set_fontsize(min(text.get_fontsize(), largest))
    for axes in figure.axes:
        for title in (axes.title, axes._left_title):
            title.set_fontsize(TITLE)
        _thin_frames(axes)
    # Laying out is what costs time, so it is done again only where something has changed.
    _fit_legends(figure)
    figure.draw_without_rendering()
    for axes in figure.axes:
        _fit_printed_values(axes)
    if any([_thin_ticks(axes) for axes in figure.axes]):
        figure.draw_without_rendering()
    _keep_inside(figure)
    figure.set_layout_engine("none")
    return figure


def clipped(figure: Figure) -> list[str]:
    """Return the texts that reach over the edge of a figure."""
    figure.draw_without_rendering()
    return [text.get_text() for text, over in _overhang(figure) if over.max() > 1]


def colliding(figure: Figure) -> list[tuple[str, str]]:
    """Return pairs of neighbouring tick labels that overlap."""
    figure.draw_without_rendering()
    pairs = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = _shown_labels(axis)
            for first, second in zip(shown[:-1], shown[1:], strict=True):
                if _overlap(first, second):
                    pairs.append((first.get_text(), second.get_text()))
    return pairs


def _overhang(figure: Figure) -> list[tuple[Text, np.ndarray]]:
    """Return each text that is drawn, and how many pixels it reaches over the left, bottom, right and top edge."""
    edge = figure.bbox
    unseen = {id(label) for axes in figure.axes for label in _unseen_labels(axes)}
    found = []
    for text in _texts(figure):
        if id(text) in unseen or not text.get_visible() or not text.get_text().strip():
            continue
        box = text.get_window_extent()
        over = edge.x0 - box.x0, edge.y0 - box.y0, box.x1 - edge.x1, box.y1 - edge.y1
        found.append((text, np.array(over)))
    return found


def _keep_inside(figure: Figure) -> None:
    """Lay out anew in a smaller part of the figure if a text reaches over its edge, as beside square panels."""
    over = np.max([o for _, o in _overhang(figure)] or [np.zeros(4)], axis=0)
    if over.max() <= 0:
        return
    width, height = figure.bbox.size
    left, bottom, right, top = np.clip(over + 2, 0, None) / (width, height, width, height)
    figure.get_layout_engine().set(rect=(left, bottom, 1 - left - right, 1 - bottom - top))
    figure.draw_without_rendering()


def _texts(figure: Figure) -> list[Text]:
    from matplotlib.text import Text

    return [artist for artist in figure.findobj(Text) if artist.get_text()]


def _thin_frames(axes: Axes) -> None:
    """Let heavy frames of cells be no heavier than a small map can bear."""
    if not axes.images:
        return
    for patch in axes.patches:
        patch.set_linewidth(min(patch.get_linewidth(), 1.2))


# --- legends --------------------------------------------------------------------------------------


def _fit_legends(figure: Figure) -> None:
    """Put the legends of a figure and of its axes above it, in as many columns as there is room for."""
    found: list[Legend] = [*figure.legends]
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            found.append(legend)
    handles, labels, widths = [], [], []
    for legend in found:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if text.get_text() not in labels:
                handles.append(handle)
                labels.append(text.get_text())
                widths.append(text.get_window_extent().width)
        legend.remove()
    if not labels:
        return
    letter = LARGEST * figure.dpi / 72
    columns = most_columns([w + _HANDLE * letter for w in widths], figure.bbox.width, _GAP * letter)
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, fontsize=LARGEST, frameon=False,
        columnspacing=_GAP, handletextpad=0.5, handlelength=1.8, borderaxespad=0.2,
    )  # fmt: skip


def most_columns(widths: Sequence[float], room: float, gap: float) -> int:
    """Return the largest number of columns in which entries of these widths, column by column, have room."""
    for columns in range(len(widths), 1, -1):
        rows = -(-len(widths) // columns)
        # Matplotlib makes the first columns longer where they cannot be alike.
        sizes = [
            rows if i < len(widths) - columns * (rows - 1) else rows - 1 for i in range(columns)
        ]
        ends = np.cumsum(sizes)
        parts = [widths[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        if sum(max(part, default=0.0) for part in parts) + gap * columns <= 0.97 * room:
            return columns
    return 1


# --- maps and ticks -------------------------------------------------------------------------------


def _fit_printed_values(axes: Axes) -> None:
    """Make the values of a map as small as its cells want, or leave them out."""
    values = list(axes.texts)
    if not axes.images or not values:
        return
    corner, across = axes.transData.transform([(0, 0), (1, 1)])
    cell = np.abs(across - corner)
    boxes = [text.get_window_extent() for text in values]
    widest, tallest = max(box.width for box in boxes), max(box.height for box in boxes)
    share = min(1.0, 0.92 * cell[0] / widest, 0.92 * cell[1] / tallest)
    size = values[0].get_fontsize() * share
    for text in values:
        if size < SMALLEST:
            text.remove()
        else:
            text.set_fontsize(size)


def _thin_ticks(axes: Axes) -> bool:
    """Leave out every second label of an axis whose labels overlap, until none do; return whether any was left out."""
    changed = False
    for axis in (axes.xaxis, axes.yaxis):
        for _ in range(4):
            shown = _shown_labels(axis)
            if not any(_overlap(a, b) for a, b in zip(shown[:-1], shown[1:], strict=True)):
                break
            _keep_every_second(axis)
            changed = True
    return changed


def _keep_every_second(axis: Axis) -> None:
    places = axis.get_ticklocs()
    labels = [label.get_text() for label in axis.get_ticklabels()]
    sizes = [label.get_fontsize() for label in axis.get_ticklabels()][:1]
    axis.set_ticks(places[::2], labels[::2], fontsize=sizes[0])


def _shown_labels(axis: Axis) -> list[Text]:
    """Return the tick labels of an axis that are drawn."""
    low, high = sorted(axis.get_view_interval())
    gap = 1e-9 * (high - low)
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [
        label
        for place, label in pairs
        if low - gap <= place <= high + gap and label.get_text().strip()
    ]


def _unseen_labels(axes: Axes) -> list[Text]:
    """Return the tick labels of axes that are not drawn: outside the limits, or all where there is no frame."""
    labels = []
    for axis in (axes.xaxis, axes.yaxis):
        shown = {id(label) for label in _shown_labels(axis)} if axes.axison else set()
        labels += [label for label in axis.get_ticklabels() if id(label) not in shown]
    return labels


def _overlap(first: Text, second: Text) -> bool:
    a, b = first.get_window_extent(), second.get_window_extent()
    return bool(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 + 1 < b.y1 and b.y0 + 1 < a.y1)
