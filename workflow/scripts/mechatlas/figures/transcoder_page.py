"""Tables of the page of a transcoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mechatlas.figures import transcoders as draw
from mechatlas.figures.html import Html, escape, figure, number, sections, table, with_interval
from mechatlas.figures.words import percent
from mechatlas.io import read_json, read_table

#: Tokens of a text in a figure.
TOKENS = 28
SCORES = {
    "replacement_corrected": "replacement",
    "completeness_corrected": "completeness",
    "replacement": "replacement, compatible",
    "completeness": "completeness, compatible",
}
MEASURES = {
    "fvu": "fraction of variance unexplained, mean over layers",
    "l0": "active features per token and layer",
    "kl": "KL(model || replacement), nats per token",
    "top1_agreement": "same most likely token",
    "loss_recovered_mean": "loss recovered, against mean MLP outputs",
    "loss_recovered_zero": "loss recovered, against no MLPs",
    "logit_mse": "squared error of logits",
    "logit_gap_with_errors": "largest difference of a logit with error terms, relative",
}


def headline_cards(evaluation: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return what heads the page as (value, what it is, note)."""
    whole = evaluation[evaluation["layer"] < 0].set_index("metric")
    wanted = {
        "fvu": "variance unexplained",
        "l0": "active features a layer",
        "top1_agreement": "same top token",
    }
    cards = []
    for metric, words in wanted.items():
        row = whole.loc[metric]
        shown = number(row["value"], 1) if metric == "l0" else percent(row["value"], 1)
        ends = [
            number(row[e], 1) if metric == "l0" else percent(row[e], 1) for e in ("low", "high")
        ]
        cards.append(
            (shown, words, f"{ends[0]} to {ends[1]}, {int(row['documents'])} test documents")
        )
    return cards


def measure_rows(evaluation: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table of measures of the whole transcoder."""
    whole = evaluation[evaluation["layer"] < 0].set_index("metric")
    rows = [
        [
            words,
            f"{whole.loc[m, 'value']:.2g}" if m.startswith("logit_gap") else _cell(whole.loc[m]),
        ]
        for m, words in MEASURES.items()
        if m in whole.index
    ]
    return ["measure", "value"], rows


def important_rows(features: pd.DataFrame, each: int) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the most important features of each layer."""
    total = features.groupby("layer")["importance"].transform("sum")
    ranked = features.assign(share=features["importance"] / total.clip(lower=1e-30))
    best = ranked.sort_values(["layer", "importance", "feature"], ascending=[True, False, True])
    rows = [
        [f"L{r.layer}/F{r.feature}", percent(r.share, 1), percent(r.density, 2), number(r.mean_active),
         number(r.max), number(r.decoder_norm)]
        for r in best.groupby("layer").head(each).itertuples()
    ]  # fmt: skip
    return [
        *("feature", "share of layer", "active on", "mean where active", "largest", "decoder norm"),
    ], rows


def text_sections(activations: pd.DataFrame, texts: Mapping[int, str]) -> Html:
    """Return lines and map of the strongest features on the texts of the first and the last group, their first tokens.

    Parameters
    ----------
    activations : DataFrame
        activations.parquet.
    texts : mapping
        Token id -> text.
    """
    parts = {}
    groups = list(dict.fromkeys(activations["group"]))
    for group in dict.fromkeys([groups[0], groups[-1]]):
        rows = activations[(activations["group"] == group) & (activations["position"] < TOKENS)]
        tokens = rows.drop_duplicates("position").sort_values("position")["token"]
        words = [texts[token] for token in tokens]
        parts[group] = figure(
            draw.feature_lines(rows, words),
            "Activations over the tokens; the strongest features of each layer.",
        ) + figure(
            draw.feature_heatmap(rows, words),
            "The same features as shares of their largest activation here.",
        )
    return sections(parts)


def weight_rows(weights: pd.DataFrame, count: int) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the virtual weights with the largest expected effect."""
    rows = [
        [f"L{r.layer}/F{r.feature}", f"L{r.target_layer}/F{r.target_feature}", number(r.weight), number(r.expected)]
        for r in weights.head(count).itertuples()
    ]  # fmt: skip
    return ["source", "target", "weight", "expected effect"], rows


def graph_rows(summaries: Sequence[str], page: str) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the graphs: prompt, sizes, scores, and a link from ``page`` to each one's own page."""
    rows = []
    for path in summaries:
        summary, name = read_json(path), Path(path).name.removesuffix(".summary.json")
        link = quote(relative(Path(path).with_name(f"{name}.html"), page))
        rows.append(
            [
                Html(f"<a href='{link}'>{escape(name)}</a>"),
                summary["prompt"],
                f"{summary['kept_nodes']} of {summary['nodes']}",
                *(number(summary["scores"][key]) for key in SCORES),
                f"{summary['largest_gap']:.1g}",
            ]
        )
    return ["graph", "prompt", "nodes kept", *SCORES.values(), "largest gap of a row"], rows


def relative(path: str | Path, page: str | Path) -> str:
    """Return the path of a file as a page refers to it."""
    import os

    return Path(os.path.relpath(path, Path(page).parent)).as_posix()


def set_sections(folders: Sequence[str]) -> Html:
    """Return what each set of prompts gave: scores, mean edges, continuations."""
    parts = {}
    for folder in map(Path, folders):
        scores = read_table(folder / "scores.parquet").query("prompt < 0").set_index("metric")
        count = int(scores["prompts"].iloc[0])
        names = {
            **SCORES,
            "mean_path_length": "mean path length",
            "correct": "answer before the wrong one: model",
            "correct_replacement": "the same: replacement model",
        }
        rows = [[words, _cell(scores.loc[metric])] for metric, words in names.items()]
        edges = read_table(folder / "edges.parquet")
        between = edges[edges["source"].str.match(r"L\d+/F")].head(20)
        edge_rows = [
            [
                r.source,
                r.target,
                with_interval(r.mean, r.low, r.high),
                f"{r.prompts} of {r.of_prompts}",
            ]
            for r in between.itertuples()
        ]
        parts[folder.name] = (
            table([f"mean over {count} prompts", "value"], rows)
            + Html("<h4>Strongest mean edges from features</h4>")
            + table(["source", "target", "share of the target's input", "prompts"], edge_rows)
            + Html("<h4>What the models write on</h4>")
            + table(
                *generation_rows(read_table(folder / "generation.parquet")),
                wide=["prompt", "continuation"],
            )
        )
    return sections(parts)


def generation_rows(generation: pd.DataFrame, shown: int = 4) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of continuations: the share of right answers of each variant, then some prompts."""
    rows = []
    for variant, part in generation.groupby("variant", sort=False):
        right = f"{percent(part['answer_first'].mean())} of {len(part)}"
        rows.append(["all", variant, "", right, percent(part["same"].mean())])
    for row in generation[generation["prompt"] < shown].itertuples():
        right = "yes" if row.answer_first else "no"
        rows.append([row.text, row.variant, row.continuation, right, percent(row.same)])
    return ["prompt", "variant", "continuation", "answer first", "tokens like the model's"], rows


def _cell(row: pd.Series) -> str:
    return with_interval(row["value"], row["low"], row["high"])
