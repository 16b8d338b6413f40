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
    explainer_rows,
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
    # A table holds names and reasons as they came; neither a column nor an element may begin inside a cell.
    return visible_characters(str(value)).replace("|", "\\|").replace("<", "\\<")


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
    headlines: Mapping[str, Any],
    events: pd.DataFrame,
    windows: pd.DataFrame,
    texts: Mapping[int, Sequence[str]],
    judged: str = "",
) -> str:
    """Return report.md.

    Parameters
    ----------
    name, source : str
        Of the model and the source.
    results : HeadResults
    table : data frame
        `mechatlas.figures.results.head_table` of the results.
    headlines : mapping
        headline.json.
    events, windows : data frame
        raw_events.parquet, windows.parquet.
    texts : mapping
        Window -> text of its tokens.
    judged : str
        The section about the judge's scores (`mechatlas.figures.judge_page.judge_markdown`).
    """
    of_head = dict(iter(events.groupby(["layer", "head"])))
    parts = [
        f"# Attention heads of {name} on {source}\n",
        *(_summary(explainer, headlines) for explainer in headlines),
        *(_numbers(explainer, headlines) for explainer in headlines),
        "## Text\n",
        markdown_table(
            ["split", "documents", "windows", "windows with patterns"], split_rows(windows)
        ),
        "## Explainers\n",
        markdown_table(*explainer_rows(headlines)),
        *([judged] if judged else []),
        "## Heads\n\nIoU with interval on test documents; advantage in IoU without sink over the closest control "
        "on the same model.\n",
        markdown_table(*_head_rows(table)),
        "## Explanations\n\nWith the strongest example: `>>query<<` and `[[key attention]]`.\n",
        "\n".join(
            _head_item(
                row, len(headlines) > 1, of_head.get((row.layer, row.head), events.head(0)), texts
            )
            for row in table.itertuples()
        )
        + "\n",
        _clusters(results.clusters),
        _unscored(results),
    ]
    return "\n".join(parts)


def _of(explainer: str, headlines: Mapping[str, Any]) -> str:
    """Return the words that tell an explainer's section from those of others."""
    return f" of the explainer {explainer}" if len(headlines) > 1 else ""


def _summary(explainer: str, headlines: Mapping[str, Any]) -> str:
    items = headline_items(headlines[explainer])
    lines = [f"- {value}: {what} ({note})" for value, what, note in items]
    heading = [f"**{explainer}**\n"] if len(headlines) > 1 else []
    return "\n".join([*heading, *lines, ""])


def _numbers(explainer: str, headlines: Mapping[str, Any]) -> str:
    headline, of = headlines[explainer], _of(explainer, headlines)
    interval = f"{100 * headline['confidence']:g} % intervals by {headline['bootstrap']} resamples of documents"
    return "\n".join(
        [
            f"## Scores{of}\n\nMeans over heads (medians of the loss recovered); {interval}.\n",
            markdown_table(*mean_rows(headline)),
            f"## Replacement curve{of}\n\nPerplexity relative to the untouched model.\n",
            markdown_table(*curve_rows(headline)),
            f"## Beside the published reference{of}\n",
            markdown_table(*reference_rows(headline)),
        ]
    )


def _head_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    columns = ["unit", "IoU", "best control", "advantage", "q", "loss recovered", "cluster"]
    several = table["explainer"].nunique() > 1
    rows = [
        [
            f"{row.unit} ({row.explainer})" if several else row.unit,
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


def _head_item(
    row: Any, several: bool, events: pd.DataFrame, texts: Mapping[int, Sequence[str]]
) -> str:
    who = f" ({row.explainer})" if several else ""
    text = _prose(row.text or f"not explained: {row.reason}")
    words = textwrap.wrap(f"**{row.unit}**{who} {text}", WIDTH - 2, break_long_words=False)
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
