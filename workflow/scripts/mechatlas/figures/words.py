"""Sentences and rows about results that the Markdown report and the pages share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechatlas.figures.html import escape, number, with_interval
from mechatlas.figures.reference import HAYES_2026
from mechatlas.figures.results import METRICS, at_share
from mechatlas.figures.style import in_order, variant_style

ORDERS = {
    "best": "programs, best explained first",
    "random": "programs, random order",
    "mean_pattern": "mean patterns, best explained first",
}


def percent(value: float | None, digits: int = 0, *, sign: bool = False) -> str:
    """Format a share as a percentage."""
    if value is None:
        return number(None)
    return f"{100 * value:{'+' if sign else ''}.{digits}f} %".replace("-", "−")


def headline_items(headline: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the headline numbers as (value, what it is, note)."""
    iou, beats = headline["means"].get("iou", {}), headline["beats"]
    known = iou.get("controls", {})
    controls = ", ".join(
        f"{variant_style(name)[2]} {number(known[name])}" for name in in_order(known)
    )
    items = [
        (
            number(iou.get("value")),
            f"mean IoU of {headline['scored']} of {headline['heads']} heads",
            f"{100 * headline['confidence']:g} % interval [{number(iou.get('low'))}, {number(iou.get('high'))}]; "
            f"controls: {controls or 'none'}",
        ),
        (
            f"{percent(beats['count'] / beats['of'])}" if beats["of"] else number(None),
            "of heads beat every control",
            f"{beats['count']} of {beats['of']} heads, by IoU without sink against controls on the same model",
        ),
    ]
    row = at_share(headline, "best")
    if row:
        items.append(_replacement_item(headline, row))
    loss = headline["means"].get("loss_recovered")
    if loss:
        note = f"median of the {loss['heads']} heads whose mean-pattern ablation does harm"
        items.append((percent(loss["value"]), "of the ablation's loss recovered", note))
    return items


def _replacement_item(headline: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str, str]:
    others = [
        f"{ORDERS[name].split(',')[0] if name == 'mean_pattern' else 'random order'} "
        f"{percent(other['ratio'] - 1, 1, sign=True)}"
        for name in ("random", "mean_pattern")
        if (other := at_share(headline, name)) is not None
    ]
    return (
        percent(row["ratio"] - 1, 1, sign=True),
        f"perplexity with {percent(row['share'])} of heads on programs",
        f"{number(headline['perplexity'])} to {number(row['perplexity'])}; " + "; ".join(others),
    )


def mean_rows(headline: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of mean scores."""
    means = headline["means"]
    controls = in_order(name for item in means.values() for name in item["controls"])
    columns = ["score", "heads", "explanation", *(variant_style(name)[2] for name in controls)]
    rows = [
        [
            words,
            str(means[metric]["heads"]),
            with_interval(*(means[metric][key] for key in ("value", "low", "high"))),
            *(number(means[metric]["controls"].get(name)) for name in controls),
        ]
        for metric, words in METRICS.items()
        if metric in means
    ]
    return columns, rows


def curve_rows(headline: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the replacement curve: perplexity ratios by share and order."""
    rows = headline["replacement"]
    orders = [name for name in ORDERS if any(row["order"] == name for row in rows)]
    columns = ["heads replaced", "share", *(ORDERS[name] for name in orders)]
    out = []
    for share in sorted({row["share"] for row in rows}):
        here = {row["order"]: row for row in rows if row["share"] == share}
        heads = next(iter(here.values()))["heads"]
        values = [
            with_interval(*(here[name][key] for key in ("ratio", "low", "high")))
            if name in here
            else number(None)
            for name in orders
        ]
        out.append([str(heads), percent(share), *values])
    return columns, out


def reference_rows(headline: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the comparison with the published reference."""
    iou, row = headline["means"].get("iou", {}), at_share(headline, "best", HAYES_2026.share)
    rows = [
        [
            "mean IoU",
            with_interval(iou.get("value"), iou.get("low"), iou.get("high")),
            f"above {number(HAYES_2026.mean_iou)}",
        ]
    ]
    if row:
        change = [
            percent(row[key] - 1, 1, sign=True) if row[key] else number(None)
            for key in ("low", "high")
        ]
        rows.append(
            [
                f"more perplexity with {percent(row['share'])} of heads replaced",
                f"{percent(row['ratio'] - 1, 1, sign=True)} [{', '.join(change)}]",
                f"{percent(HAYES_2026.ratio - 1, sign=True)} ({percent(HAYES_2026.share)} of heads)",
            ]
        )
    return ["", "here", HAYES_2026.citation], rows


def explainer_rows(headlines: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of what each explainer did and cost.

    Parameters
    ----------
    headlines : mapping
        headline.json.
    """
    columns = ["explainer", "heads", "explained", "with program", "failure rate", "why not"]
    paid = any("usage" in headline["explanations"] for headline in headlines.values())
    if paid:
        columns += ["requests", "prompt tokens", "of these cached", "answer tokens", "price"]
    rows = []
    for explainer, headline in headlines.items():
        counts = headline["explanations"]
        failed = counts["heads"] - counts["explained"]
        why = "; ".join(f"{reason} ({n})" for reason, n in counts["failures"].items())
        row = [explainer, *(str(counts[key]) for key in ("heads", "explained", "with_program"))]
        row += [percent(failed / counts["heads"] if counts["heads"] else None), why or number(None)]
        rows.append(row + (_usage_cells(counts.get("usage")) if paid else []))
    return columns, rows


def _usage_cells(usage: Mapping[str, Any] | None) -> list[str]:
    names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    if usage is None:
        return [number(None)] * (len(names) + 1)
    price = "unknown" if usage["price"] is None else number(float(usage["price"]), 4)
    return [*(str(usage[name]) for name in names), price]


def run_rows(model: str, source: str, config: Any, windows: Any) -> list[tuple[str, str]]:
    """Return what was run: the model and its sizes, the source, the windows.

    Parameters
    ----------
    model, source : str
        Names in the config.
    config : mechatlas.models.config.ModelConfig
    windows : data frame
        windows.parquet.
    """
    sizes = f"{config.n_layers} layers of {config.n_heads} heads, d_model {config.d_model}"
    length = len(windows["tokens"].iloc[0])
    return [
        ("model", f"{model} ({config.architecture}: {sizes}, {config.vocab_size} tokens)"),
        ("source", source),
        ("documents", str(windows["doc"].nunique())),
        ("windows", f"{len(windows)} of {length} tokens, BOS included"),
    ]


def split_rows(windows: Any) -> list[list[str]]:
    """Return (split, documents, windows, windows with patterns) of windows.parquet."""
    rows = []
    for split in ("train", "validation", "test"):
        part = windows[windows["split"] == split]
        sample = part[part["pattern_sample"]]
        rows.append([split, *(str(n) for n in (part["doc"].nunique(), len(part), len(sample)))])
    return rows


def explanation_rows(table: Any) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of explanations, from `mechatlas.figures.results.head_table`."""
    columns = ["unit", "explanation", "IoU", "advantage", "best control", "q", "loss recovered"]
    several = table["explainer"].nunique() > 1
    if several:
        columns.insert(1, "explainer")
    rows = [
        [
            row.unit,
            *([row.explainer] if several else []),
            row.text or f"not explained: {row.reason}",
            with_interval(row.iou, row.iou_low, row.iou_high)
            if row.status == "scored"
            else "unscored",
            with_interval(row.advantage, row.advantage_low, row.advantage_high),
            variant_style(row.best_control)[2] if row.best_control else number(None),
            number(row.advantage_q_value, 3),
            with_interval(row.loss_recovered, row.loss_recovered_low, row.loss_recovered_high),
            str(row.cluster) if row.cluster_label else number(None),
        ]
        for row in table.itertuples()
    ]
    return [*columns, "cluster"], rows


def example_heading(kind: str, row: Any) -> str:
    """Return a heading above the examples of a head, as HTML."""
    score = with_interval(row.iou, row.iou_low, row.iou_high)
    return f"<h3>{escape(kind.capitalize())}: {escape(row.unit)}, IoU {score}</h3><p>{escape(row.text)}</p>"


def cluster_rows(clusters: Mapping[str, Any]) -> list[list[str]]:
    """Return (label, heads, medoid, mean similarity, units) of clusters.json, noise last."""
    rows = [
        [
            f"{cluster['id']}: {cluster['label']}",
            str(cluster["size"]),
            cluster["medoid"],
            number(cluster["mean_similarity"]),
            ", ".join(cluster["units"]),
        ]
        for cluster in clusters["clusters"]
    ]
    noise = clusters["noise"]
    none = number(None)
    return (
        [*rows, ["in no cluster", str(len(noise)), none, none, ", ".join(noise)]] if noise else rows
    )
