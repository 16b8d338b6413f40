"""Example texts of heads: where a head attends, as HTML and as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mechatlas.figures.html import Html, escape, visible_characters

BEFORE_QUERY, AFTER_QUERY, AROUND_KEY = 10, 3, 6
# A key below this attention is not shaded: it could not be seen.
SHOWN_ATTENTION = 0.02


@dataclass(frozen=True)
class Example:
    """One query of a head and the keys that its events hold.

    Attributes
    ----------
    window : int
    doc : str
    split : str
    query : int
        Position in the window.
    keys : mapping
        Position -> attention.
    """

    window: int
    doc: str
    split: str
    query: int
    keys: Mapping[int, float] = field(default_factory=dict)


def top_examples(events: pd.DataFrame, layer: int, head: int, count: int) -> list[Example]:
    """Return the strongest queries of a head, each from another document as far as possible.

    Parameters
    ----------
    events : data frame
        raw_events.parquet. Test documents are taken where there are any.
    layer, head, count : int
    """
    mine = events[(events["layer"] == layer) & (events["head"] == head)]
    top = mine[mine["role"] == "top"]
    if (top["split"] == "test").any():
        top = top[top["split"] == "test"]
    order = ["write_norm", "window", "query", "key"]
    top = top.sort_values(order, ascending=[False, True, True, True])
    top = top.drop_duplicates(["window", "query"])
    again = top["doc"].duplicated()
    chosen = pd.concat([top[~again], top[again]]).head(count)
    return [_example(row, mine) for row in chosen.itertuples()]


def _example(row: object, events: pd.DataFrame) -> Example:
    same = events[(events["window"] == row.window) & (events["query"] == row.query)]
    # The same pair may be there in several roles.
    keys = same.drop_duplicates("key").set_index("key")["attention"]
    shown = {int(k): float(a) for k, a in keys.items() if a >= SHOWN_ATTENTION or k == row.key}
    return Example(int(row.window), str(row.doc), str(row.split), int(row.query), shown)


def shown_pieces(length: int, query: int, keys: Sequence[int]) -> list[range]:
    """Return the stretches of a window around a query and its keys, in order and apart from one another."""
    wanted = [(query - BEFORE_QUERY, query + AFTER_QUERY)]
    wanted += [(key - AROUND_KEY, key + AROUND_KEY) for key in keys]
    pieces: list[list[int]] = []
    for start, end in sorted(wanted):
        start, end = max(0, start), min(length - 1, end)
        if pieces and start <= pieces[-1][1] + 2:
            pieces[-1][1] = max(pieces[-1][1], end)
        else:
            pieces.append([start, end])
    return [range(start, end + 1) for start, end in pieces]


def example_html(strings: Sequence[str], example: Example) -> Html:
    """Return an example as HTML: the query framed, keys shaded by attention.

    Parameters
    ----------
    strings : sequence of str
        Text of every token of the window. It is escaped; characters that show nothing are spelled out.
    example : Example
    """
    parts: list[str] = []
    end = 0
    for piece in shown_pieces(len(strings), example.query, list(example.keys)):
        if piece.start > end:
            parts.append("<span class='mx-gap'> … </span>")
        parts += [_token(strings[at], at, example) for at in piece]
        end = piece.stop
    if end < len(strings):
        parts.append("<span class='mx-gap'> …</span>")
    where = f"document {example.doc}, {example.split}, window {example.window}, query at {example.query}"
    return Html(
        f"<div class='mx-example'><span class='mx-where'>{escape(where)}</span>{''.join(parts)}</div>"
    )


def _token(text: str, at: int, example: Example) -> str:
    shown = escape(text) or "∅"
    if at not in example.keys and at != example.query:
        return shown
    # A space before a word is not marked: marks of neighbours would run into one another.
    word = shown.lstrip(" ") or shown
    space = shown[: len(shown) - len(word)]
    attention = example.keys.get(at)
    if attention is not None:
        note = f"attention {attention:.2f}"
        word = f"<span class='mx-key' style='--a:{min(1.0, attention):.2f}' title='{note}'>{word}</span>"
    if at == example.query:
        word = f"<span class='mx-query' title='query'>{word}</span>"
    return space + word


def example_text(strings: Sequence[str], example: Example) -> str:
    """Return an example as one line of plain text: ``[[key 0.83]]`` and ``>>query<<``."""
    parts: list[str] = []
    end = 0
    for piece in shown_pieces(len(strings), example.query, list(example.keys)):
        if piece.start > end:
            parts.append(" … ")
        for at in piece:
            text = visible_characters(strings[at]) or "∅"
            if at in example.keys:
                text = _around(text, "[[", f" {example.keys[at]:.2f}]]")
            parts.append(_around(text, ">>", "<<") if at == example.query else text)
        end = piece.stop
    return "".join(parts).strip()


def _around(text: str, left: str, right: str) -> str:
    bare = text.lstrip(" ")
    return " " * (len(text) - len(bare)) + left + bare + right


def examples_html(
    events: pd.DataFrame, tokens: Mapping[int, Sequence[str]], layer: int, head: int, count: int
) -> Html:
    """Return the strongest examples of a head.

    Parameters
    ----------
    events : data frame
        raw_events.parquet.
    tokens : mapping
        Window -> text of its tokens.
    layer, head, count : int
    """
    found = top_examples(events, layer, head, count)
    if not found:
        return Html("<p class='mx-note'>No events of this head were kept.</p>")
    return Html("".join(example_html(tokens[e.window], e).text for e in found))


LEGEND = Html(
    "<p class='mx-example'>The <span class='mx-query'>query</span> looks back at its keys: "
    "<span class='mx-key' style='--a:0.1'>attention 0.1</span> "
    "<span class='mx-key' style='--a:0.5'>attention 0.5</span> "
    "<span class='mx-key' style='--a:1'>attention 1</span></p>"
)


class WindowTexts(Mapping[int, Sequence[str]]):
    """Token texts of windows, made when they are asked for.

    Parameters
    ----------
    windows : data frame
        windows.parquet.
    tokenizer : mechatlas.models.tokenizer.Tokenizer
    """

    def __init__(self, windows: pd.DataFrame, tokenizer: object) -> None:
        self._rows = dict(zip(windows["window"].tolist(), windows["tokens"], strict=True))
        self._tokenizer = tokenizer

    def __getitem__(self, window: int) -> list[str]:
        return self._tokenizer.strings(self._rows[window])

    def __iter__(self):  # noqa: ANN204
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
