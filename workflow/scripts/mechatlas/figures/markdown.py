"""The findings of one model and source as Markdown that reads well in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mechatlas.figures.examples import example_text, top_examples
from mechatlas.figures.html import number, visible_characters, with_interval
from mechatlas.figures.results import HeadResults, unscored_rows
from mechatlas.figures.words import (
    curve_rows,
    headline_items,
    mean_rows,
    reference_rows,
    split_rows,
)

WIDTH = 100


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns line up as plain text."""
    cells = [[_cell(c) for c in columns], *([_cell(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    lines = [
        "| "
        + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True))
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _cell(value: Any) -> str:
    return visible_characters(str(value)).replace("|", "\\|")


def code(text: str) -> str:
    """Return any text as inline code: fenced by more backticks than it holds."""
    text = visible_characters(text)
    fence = "`"
    while fence in text:
        fence += "`"
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def heads_report(
    name: str,
    source: str,
    results: HeadResults,
    table: pd.DataFrame,
    headline: Mapping[str, Any],
    events: pd.DataFrame,
    windows: pd.DataFrame,
    texts: Mapping[int, Sequence[str]],
) -> str:
    """Return report.md.

    Parameters
    ----------
    name, source : str
        Of the model and the source.
    results : HeadResults
    table : data frame
        `mechatlas.figures.results.head_table` of the results.
    headline : mapping
        headline.json.
    events, windows : data frame
        raw_events.parquet, windows.parquet.
    texts : mapping
        Window -> text of its tokens.
    """
    of_head = dict(iter(events.groupby(["layer", "head"])))
    parts = [
        f"# Attention heads of {name} on {source}\n",
        "\n".join(f"- {value}: {what} ({note})" for value, what, note in headline_items(headline))
        + "\n",
        _numbers(headline, windows),
        "## Heads\n\nIoU with interval on test documents; advantage in IoU without sink over the closest control "
        "on the same model.\n",
        markdown_table(*_head_rows(table)),
        "## Explanations\n\nWith the strongest example: `>>query<<` and `[[key attention]]`.\n",
        "\n".join(
            _head_item(row, of_head.get((row.layer, row.head), events.head(0)), texts)
            for row in table.itertuples()
        )
        + "\n",
        _clusters(results.clusters),
        _unscored(results),
    ]
    return "\n".join(parts)


def _numbers(headline: Mapping[str, Any], windows: pd.DataFrame) -> str:
    interval = f"{100 * headline['confidence']:g} % intervals by {headline['bootstrap']} resamples of documents"
    return "\n".join(
        [
            f"## Scores\n\nMeans over heads (medians of the loss recovered); {interval}.\n",
            markdown_table(*mean_rows(headline)),
            "## Replacement curve\n\nPerplexity relative to the untouched model.\n",
            markdown_table(*curve_rows(headline)),
            "## Beside the published reference\n",
            markdown_table(*reference_rows(headline)),
            "## Text\n",
            markdown_table(
                ["split", "documents", "windows", "windows with patterns"], split_rows(windows)
            ),
        ]
    )


def _head_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    columns = ["unit", "IoU", "best control", "advantage", "q", "loss recovered", "cluster"]
    rows = [
        [
            row.unit,
            with_interval(row.iou, row.iou_low, row.iou_high)
            if row.status == "scored"
            else "unscored",
            row.best_control or number(None),
            with_interval(row.advantage, row.advantage_low, row.advantage_high),
            number(row.advantage_q_value, 3),
            number(row.loss_recovered),
            number(None) if pd.isna(row.cluster) else str(row.cluster),
        ]
        for row in table.itertuples()
    ]
    return columns, rows


def _head_item(row: Any, events: pd.DataFrame, texts: Mapping[int, Sequence[str]]) -> str:
    words = textwrap.wrap(f"**{row.unit}** {_prose(row.text)}", WIDTH - 2, break_long_words=False)
    lines = ["- " + "\n  ".join(words)]
    lines += [
        f"  {code(example_text(texts[e.window], e))}"
        for e in top_examples(events, row.layer, row.head, 1)
    ]
    return "\n".join(lines)


def _prose(text: str) -> str:
    """Keep the text of an explanation from being read as markup."""
    text = visible_characters(text)
    return "".join(f"\\{c}" if c in "\\`*_<>[]#|" else c for c in text)


def _clusters(clusters: Mapping[str, Any]) -> str:
    settings, noise = clusters["settings"], clusters["noise"]
    lines = [
        f"## Clusters\n\n{settings['method']}, at least {settings['min_cluster_size']} heads each.\n"
    ]
    for cluster in clusters["clusters"]:
        text = f"**{cluster['id']}** {_prose(cluster['label'])} ({cluster['size']}): {', '.join(cluster['units'])}"
        lines.append("- " + "\n  ".join(textwrap.wrap(text, WIDTH - 2, break_long_words=False)))
    text = f"in no cluster ({len(noise)}): {', '.join(noise) or 'none'}"
    lines.append("- " + "\n  ".join(textwrap.wrap(text, WIDTH - 2)))
    return "\n".join(lines) + "\n"


def _unscored(results: HeadResults) -> str:
    rows = unscored_rows(results)
    if not rows:
        return "## Without a score\n\nNothing: every head has every score.\n"
    columns = ["score", "reason", "count", "heads"]
    short = (
        (*row[:2], str(row[2]), textwrap.shorten(row[3], 60, placeholder=" ...")) for row in rows
    )
    return f"## Without a score\n\n{markdown_table(columns, short)}"
