"""Small pieces of HTML: escaped text, tables, figures, a whole page. Nothing refers to anything outside the page."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechatlas.figures.assets import PAGE_SCRIPT, PAGE_STYLE
from mechatlas.figures.style import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "–"
_SYMBOLS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
# Control, format (text direction, zero width), surrogate, private use, unassigned, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class Html:
    """Markup that a notebook shows; its plain form is short, so that the markup is stored once."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "<HTML>"

    def _repr_html_(self) -> str:
        return self.text

    def __add__(self, other: Html) -> Html:
        return Html(self.text + other.text)


def visible_characters(text: str) -> str:
    """Return text in which characters that show nothing or change what is around them are spelled out."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if unicodedata.category(character) in _HIDDEN:
        return f"[U+{ord(character):04X}]"
    return character


def escape(text: Any) -> str:
    """Return any text as HTML text, also fit for a quoted attribute, with nothing hidden in it."""
    return html.escape(visible_characters(str(text)), quote=True)


def prose(text: Any) -> str:
    """Return text as HTML in which a number stays with its percent sign."""
    return re.sub(r"(?<=\d) %", "\u00a0%", escape(text))


def number(value: Any, digits: int = 2) -> str:
    """Format a number; a missing one is a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, int):
        return str(value)
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def probability(value: Any) -> str:
    """Format a p-value or one that was adjusted; no measured one is 0."""
    return "< 0.001" if value is not None and value < 0.0005 else number(value, 3)


def with_interval(value: Any, low: Any, high: Any, digits: int = 2) -> str:
    """Format a number with its interval: ``0.81 [0.78, 0.84]``."""
    text = number(value, digits)
    if text == MISSING or number(low) == MISSING:
        return text
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    wide: Iterable[str] = (),
    sortable: bool = False,
) -> Html:
    """Return a table; cells are escaped, cells that are `Html` are taken as they are.

    Parameters
    ----------
    columns : sequence of str
    rows : iterable of sequences
    wide : iterable of str
        Columns that hold prose; the others do not wrap.
    sortable : bool
        Whether a click on a column's head sorts the rows.
    """
    wraps = [name in set(wide) for name in columns]
    head = "".join(f"<th scope='col'>{prose(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        cells = (_cell(value, wrap) for value, wrap in zip(row, wraps, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kind = "mx-table mx-sort" if sortable else "mx-table"
    return Html(
        f"<div class='mx-scroll'><table class='{kind}'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: Any, wraps: bool) -> str:
    text = value.text if isinstance(value, Html) else prose(value)
    return f"<td class='mx-prose'>{text}</td>" if wraps else f"<td>{text}</td>"


def figure(drawing: Figure, caption: str, *, alt: str = "") -> Html:
    """Return a figure with a caption, as an image inside the page."""
    width = int(drawing.get_size_inches()[0] * 96)
    data = base64.b64encode(svg(drawing).encode()).decode()
    # Narrow screens scroll a figure rather than shrink its text below what can be read.
    return Html(
        f"<figure class='mx-figure'><div class='mx-scroll'><img src='data:image/svg+xml;base64,{data}' "
        f"alt='{escape(alt or caption)}' style='width:{width}px;min-width:{min(width, 620)}px'></div>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )


def cards(items: Iterable[tuple[str, str, str]]) -> Html:
    """Return headline numbers: (value, what it is, note)."""
    parts = (
        f"<div class='mx-card'><b>{prose(value)}</b><span>{prose(name)}</span>"
        f"<small>{prose(note)}</small></div>"
        for value, name, note in items
    )
    return Html(f"<div class='mx-cards'>{''.join(parts)}</div>")


def sections(parts: Mapping[str, Html]) -> Html:
    """Return parts one below the other, each under its name if there are several."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return Html("".join(f"<h4>{escape(name)}</h4>{part.text}" for name, part in parts.items()))


def page(title: str, body: str, *, facts: Mapping[str, Any] | None = None, style: str = "") -> str:
    """Return a whole page around a body.

    Parameters
    ----------
    title : str
    body : str
        HTML.
    facts : mapping, optional
        Provenance, kept in a meta element.
    style : str
        Further style rules.
    """
    record = html.escape(json.dumps(facts or {}, ensure_ascii=True, sort_keys=True), quote=True)
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f'<meta name="mechatlas" content="{record}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{PAGE_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>\n{PAGE_SCRIPT}</script>\n</body>\n</html>\n"
    )
