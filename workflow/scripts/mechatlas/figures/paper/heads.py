"""The explanations of one model's heads as figures of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from mechatlas.figures import heads as draw
from mechatlas.figures.paper.files import Drawn, drawn_at
from mechatlas.figures.paper.published import pairs
from mechatlas.figures.paper.scores import score_figures
from mechatlas.figures.reference import HAYES_2026
from mechatlas.figures.results import METRICS, HeadResults, head_table
from mechatlas.figures.style import BLACK, COLUMN, PAGE, VARIANTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("iou", "iou_without_sink", "correlation")


def head_figures(results: HeadResults) -> Iterator[Drawn]:
    """Draw scores of all explanations: maps, histograms, trends over layers, controls, and the replacement curve."""
    scores = results.scores
    for metric in SHOWN:
        yield from score_figures(scores, metric, METRICS[metric], "heads", VARIANTS, "heads")
    for explainer in results.explainers:
        own = results.only(explainer)
        tail = f"_{explainer}" if len(results.explainers) > 1 else ""
        table = head_table(own)
        columns = ["unit", "layer", "head", "text", "status", "iou", "iou_low", "iou_high"]
        yield Drawn(
            f"heads_map{tail}",
            drawn_at(COLUMN, draw.layer_head_map, table, "iou", METRICS["iou"]),
            table[columns],
            f"IoU of predicted and true attention of each head on test documents ({table['iou'].notna().sum()} of "
            f"{len(table)} explained heads scored), explained by {explainer}. No unit; 1 is best; hatched: no score.",
        )
        rows = own.scores[own.scores["metric"] == "iou_without_sink"]
        yield Drawn(
            f"heads_controls{tail}",
            drawn_at(
                PAGE,
                draw.score_against_controls,
                own.scores,
                "iou_without_sink",
                "IoU without sink",
            ),
            rows,
            f"IoU without the first key (sink) of {rows['unit'].nunique()} heads, best first, by {explainer}, "
            "beside the same score of the controls. Lines are bootstrap intervals over documents. No unit.",
        )
        if len(own.curve):
            yield replacement(own.curve, tail)
    yield published(results)


def replacement(curve: pd.DataFrame, tail: str) -> Drawn:
    """Draw the perplexity of the model with heads on their programs, beside the published ratio."""
    known = curve["order"].eq("best") & (curve["share"] - HAYES_2026.share).abs().lt(1e-9)
    data = curve.assign(published=known.map({True: HAYES_2026.ratio, False: float("nan")}))
    return Drawn(
        f"heads_replacement{tail}",
        drawn_at(COLUMN, _curve, curve),
        data.assign(difference=data["ratio"] - data["published"]),
        f"Perplexity of the model with a share of its {int(curve['heads'].max())} explained heads on their programs, "
        "relative to the whole model (ratio, no unit), on test documents. Bands: bootstrap intervals over documents. "
        f"Diamond: published ({HAYES_2026.citation}; another model and text).",
    )


def _curve(curve: pd.DataFrame) -> Figure:
    figure = draw.replacement_curve(curve)
    axes = figure.axes[0]
    axes.plot(
        100 * HAYES_2026.share, HAYES_2026.ratio, "D", markerfacecolor="none", markeredgecolor=BLACK, markersize=4,
        label="published",
    )  # fmt: skip
    axes.legend()
    return figure


def published(results: HeadResults) -> Drawn:
    """Draw mean scores beside the published ones, as a table of numbers in the data."""
    rows = results.scores
    rows = rows[(rows["control"] == "none") & rows["metric"].eq("iou") & rows["value"].notna()]
    curve = results.curve
    at = curve[curve["order"].eq("best") & (curve["share"] - HAYES_2026.share).abs().lt(1e-9)]
    numbers = [
        *((f"mean IoU, {name}", part["value"].mean(), HAYES_2026.mean_iou)
          for name, part in rows.groupby("explainer", sort=True)),
        *((f"perplexity ratio at {HAYES_2026.share:.0%}, {row.explainer}", row.ratio, HAYES_2026.ratio)
          for row in at.itertuples()),
    ]  # fmt: skip
    data = pd.DataFrame(numbers, columns=["quantity", "ours", "published"])
    data["difference"] = data["ours"] - data["published"]
    data["source"] = HAYES_2026.citation
    return Drawn(
        "heads_published",
        drawn_at(COLUMN, pairs, data),
        data,
        f"Mean IoU and perplexity ratio here ({len(rows)} scores) and published ({HAYES_2026.citation}; another model "
        "and text, and a lower bound for the IoU). No unit.",
    )
