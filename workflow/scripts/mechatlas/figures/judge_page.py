"""What a judge's scores look like on a page and in a report: nothing where nobody judged."""

from __future__ import annotations

import pandas as pd

from mechatlas.figures import html
from mechatlas.figures.judge import (
    JUDGE_UNIT_COLUMNS,
    judge_figure,
    judge_rows,
    judge_unit_rows,
    spend_rows,
    unscored_judge_rows,
)
from mechatlas.figures.judge_scores import METRICS, shown_metrics
from mechatlas.figures.markdown import markdown_table
from mechatlas.score.judge.columns import HEADLINE

UNSCORED_COLUMNS = ("score", "explainer", "reason", "units", "which")
ABOUT = (
    "A language model, the judge, was given an explanation and asked about test items; it saw no attention. Its "
    "answers are scored like predictions. On the same items stand the program of the embedded explainer and a token "
    "look-up, neither of which needs a judge: an explanation is worth its words where it gains over them. Planted "
    "units, whose behaviour is known, give the judge's ceiling with their own description and its floor with that of "
    "another one."
)


def judge_section(scores: pd.DataFrame | None) -> html.Html:
    """Return the section about the judge's scores; empty without a judge.

    Parameters
    ----------
    scores : data frame, optional
        judge_scores.parquet.
    """
    if scores is None:
        return html.Html("")
    columns, rows = judge_rows(scores)
    parts = [
        html.Html("<h2>Scores by a judge</h2>"),
        html.Html(f"<p>{html.prose(ABOUT)}</p>"),
        html.table(columns, rows),
        *(_drawn(scores, scorer, metric) for scorer, metric in drawn_metrics(scores)),
        html.Html("<h3>Not judged</h3>"),
        html.table(list(UNSCORED_COLUMNS), unscored_judge_rows(scores), wide=["reason", "which"]),
        html.Html("<h3>What judging took</h3>"),
        html.table(*spend_rows(scores)),
    ]
    return html.Html("".join(part.text for part in parts))


def drawn_metrics(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (scorer, metric) pairs of which there is a figure; the others are in the table of means."""
    return [key for key in shown_metrics(scores) if key[1].startswith(HEADLINE)]


def _drawn(scores: pd.DataFrame, scorer: str, metric: str) -> html.Html:
    words = METRICS[(scorer, metric)]
    units = html.table(
        list(JUDGE_UNIT_COLUMNS),
        judge_unit_rows(scores, scorer, metric),
        wide=["why unscored"],
        sortable=True,
    )
    drawing = html.figure(
        judge_figure(scores, scorer, metric), f"{words}: each unit with its interval, best first."
    )
    return html.Html(
        f"{drawing.text}<details><summary>{html.escape(words)}, all units</summary>{units.text}</details>"
    )


def judge_markdown(scores: pd.DataFrame | None) -> str:
    """Return the section of the Markdown report; empty without a judge."""
    if scores is None:
        return ""
    return "\n".join(
        [
            f"## Scores by a judge\n\n{ABOUT}\n",
            markdown_table(*judge_rows(scores)),
            "### Not judged\n",
            markdown_table(
                UNSCORED_COLUMNS,
                [list(map(str, row)) for row in unscored_judge_rows(scores)],
            ),
            "### What judging took\n",
            markdown_table(*spend_rows(scores)),
        ]
    )
