"""Data of the pages of latents of one dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.figures.atlas.data import (
    interval,
    number,
    score_tree,
    texts,
    truth,
    write_data,
)
from mechatlas.figures.atlas.examples import latent_examples
from mechatlas.figures.atlas.judge import add_judge
from mechatlas.figures.html import visible_characters
from mechatlas.io import read_table

FLAGS = ("dense", "single_token")
BINS = 24
#: Tokens of each list of promoted ones.
PROMOTED = 10
KEY = ["layer", "latent"]
STEERING = "steering_auc"


def write_latents(
    folder: Path,
    model: str,
    source: str,
    dictionary: str,
    place: Path,
    texts_of: Mapping[int, Sequence[str]],
    token_text: Callable[[int], str],
    judged: bool,
) -> dict[str, Any]:
    """Write the index and the pages of a dictionary's latents; return what the core says about them.

    Parameters
    ----------
    folder : Path
        Of the atlas.
    model, source, dictionary : str
    place : Path
        Results of the latents.
    texts_of : mapping
        Window -> texts of its tokens.
    token_text : callable
        Token id -> its text.
    judged : bool
        Whether a judge scored the explanations.
    """
    summary = pd.read_csv(place / "summary.csv")
    summary["text"] = summary["text"].astype(object).fillna("").astype(str)
    statistics = read_table(place / "latent_stats.parquet")
    statistics = statistics[(statistics["split"] == "train") & ~statistics["dead"]]
    prefix = summary["unit"].iloc[0].split(".")[1] if len(summary) else ""
    name = f"{model}/{source}/{dictionary}"
    index = _index(statistics, summary, prefix)
    details = _details(place, summary, texts_of, token_text)
    if judged:
        add_judge(place, summary, index, details)
    write_data(folder, f"{name}/index", index)
    for layer, found in details.items():
        write_data(folder, f"{name}/layer-{layer}", found)
    return {
        **{"source": source, "dictionary": dictionary, "point": prefix},
        **{"alive": len(statistics), "explained": int(summary["unit"].nunique())},
        "layers": sorted(int(layer) for layer in statistics["layer"].unique()),
    }


def _index(statistics: pd.DataFrame, summary: pd.DataFrame, point: str) -> dict[str, Any]:
    """Return all living latents, the most important ones of their layers first, and what explanations say."""
    totals = statistics.groupby("layer")["importance"].transform("sum").clip(lower=1e-300)
    table = statistics.assign(share=statistics["importance"] / totals)
    table = table.sort_values(["share", *KEY], ascending=[False, True, True], kind="stable")
    return {
        "point": point,
        "layer": table["layer"].tolist(),
        "latent": table["latent"].tolist(),
        "share": [number(x, 3) for x in table["share"]],
        "rate": [number(x, 3) for x in table["firing_rate"]],
        "flag": (table["dense"] + 2 * table["single_token"]).astype(int).tolist(),
        "words": [
            {
                **{"unit": row["unit"], "explainer": row["explainer"], "kind": row["kind"]},
                "text": visible_characters(row["text"]),
                "correlation": interval(row, "correlation"),
                "advantage": interval(row, "advantage"),
                "control": "" if pd.isna(row["best_control"]) else row["best_control"],
                "beats": truth(row["beats_every_control"]),
                "steering": number(row.get(STEERING)),
                "loss": number(row["loss_recovered"]),
            }
            for row in summary.to_dict("records")
        ],
    }


def _details(
    place: Path,
    summary: pd.DataFrame,
    texts_of: Mapping[int, Sequence[str]],
    token_text: Callable[[int], str],
) -> dict[int, dict[str, Any]]:
    """Return layer -> unit -> what its page shows."""
    read = lambda name, **how: read_table(place / f"{name}.parquet", **how)  # noqa: E731
    activations = read("activations", filters=[("control", "=", "none")])
    examples = latent_examples(read("raw_events"), activations, texts_of)
    histograms = _histograms(activations)
    scored = score_tree(read("scores"), KEY)
    promoted = _promoted(read("promoted_tokens"), token_text)
    near: dict[tuple[int, int], list[Any]] = {}
    rows = read("neighbours").sort_values([*KEY, "kind", "rank"])
    for row in rows.itertuples():
        entry = [row.kind, int(row.neighbour), number(row.value, 3)]
        near.setdefault((row.layer, row.latent), []).append(entry)
    found: dict[int, dict[str, Any]] = {}
    for row in summary.drop_duplicates("unit").to_dict("records"):
        key = (row["layer"], row["latent"])
        stem = row["unit"][: row["unit"].rindex("F") + 1]
        found.setdefault(row["layer"], {})[row["unit"]] = {
            "max": number(row["max_activation"]),
            "mean": number(row["mean_activation"]),
            "scores": scored.get(key, {}),
            "neighbours": [
                [kind, f"{stem}{other}", value] for kind, other, value in near.get(key, ())
            ],
            "promoted": promoted.get(key, []),
            "histogram": histograms.get(key),
            "examples": examples.get(key, []),
        }
    return found


def _promoted(
    rows: pd.DataFrame, token_text: Callable[[int], str]
) -> dict[tuple[int, int], list[list[Any]]]:
    """Return by latent lists of kind, sign, tokens, values; what is promoted first."""
    lists: dict[tuple[Any, ...], tuple[list[str], list[Any]]] = {}
    order = [*KEY, "kind", "sign", "rank"]
    rows = rows.sort_values(order, ascending=[True, True, True, False, True])
    for layer, latent, kind, sign, token, value in rows[
        [*KEY, "kind", "sign", "token", "value"]
    ].itertuples(index=False, name=None):
        tokens, values = lists.setdefault((layer, latent, kind, sign), ([], []))
        if len(tokens) < PROMOTED:
            tokens.extend(texts([token_text(int(token))]))
            values.append(number(value))
    found: dict[tuple[int, int], list[list[Any]]] = {}
    for (layer, latent, kind, sign), (tokens, values) in lists.items():
        found.setdefault((layer, latent), []).append([kind, int(sign), tokens, values])
    return found


def _histograms(activations: pd.DataFrame) -> dict[tuple[int, int], dict[str, Any]]:
    """Return by latent the counts of its activations in bins from 0 to the largest."""
    ordered = activations.sort_values(KEY, kind="stable")
    keys, values = ordered[KEY].to_numpy(), ordered["activation"].to_numpy(float)
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)]) if len(keys) else []
    found = {}
    for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
        counts, edges = np.histogram(
            values[start:stop], BINS, range=(0, float(values[start:stop].max()))
        )
        layer, latent = keys[start].tolist()
        found[layer, latent] = {"counts": counts.tolist(), "top": number(edges[-1])}
    return found
