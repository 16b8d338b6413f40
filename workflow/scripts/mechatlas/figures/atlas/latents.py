"""Data of the pages of latents of one dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.figures.atlas.data import (
    grouped,
    interval,
    number,
    numbers,
    scores,
    texts,
    truth,
    write_data,
)
from mechatlas.figures.atlas.examples import latent_examples
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
    """
    summary = pd.read_csv(place / "summary.csv")
    summary["text"] = summary["text"].astype(object).fillna("").astype(str)
    statistics = read_table(place / "latent_stats.parquet")
    statistics = statistics[(statistics["split"] == "train") & ~statistics["dead"]]
    prefix = summary["unit"].iloc[0].split(".")[1] if len(summary) else ""
    name = f"{model}/{source}/{dictionary}"
    write_data(folder, f"{name}/index", _index(statistics, summary, prefix))
    for layer, found in _details(place, summary, texts_of, token_text).items():
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
    events = grouped(read_table(place / "raw_events.parquet"), KEY)
    own = read_table(place / "activations.parquet", filters=[("control", "=", "none")])
    activations = grouped(own, KEY)
    scored = grouped(read_table(place / "scores.parquet"), [*KEY, "explainer"])
    tables = {
        name: grouped(read_table(place / f"{name}.parquet"), KEY)
        for name in ("neighbours", "promoted_tokens")
    }
    found: dict[int, dict[str, Any]] = {}
    for row in summary.drop_duplicates("unit").to_dict("records"):
        key = (row["layer"], row["latent"])
        stem = row["unit"][: row["unit"].rindex("F") + 1]
        mine = {
            "max": number(row["max_activation"]),
            "mean": number(row["mean_activation"]),
            "scores": {
                explainer: scores(rows)
                for (layer, latent, explainer), rows in scored.items()
                if (layer, latent) == key
            },
            "neighbours": [
                [r.kind, f"{stem}{r.neighbour}", number(r.value, 3)]
                for r in _rows(tables["neighbours"], key)
            ],
            "promoted": _promoted(tables["promoted_tokens"].get(key), token_text),
        }
        if key in activations:
            mine["histogram"] = _histogram(activations[key]["activation"].to_numpy(float))
            if key in events:
                mine["examples"] = latent_examples(events[key], activations[key], texts_of)
        found.setdefault(row["layer"], {})[row["unit"]] = mine
    return found


def _rows(groups: Mapping[Any, pd.DataFrame], key: Any) -> Any:
    return groups[key].sort_values(["kind", "rank"]).itertuples() if key in groups else ()


def _promoted(rows: pd.DataFrame | None, token_text: Callable[[int], str]) -> list[list[Any]]:
    """Return lists of kind, sign, tokens, values."""
    if rows is None:
        return []
    found = []
    for (kind, sign), group in rows.groupby(["kind", "sign"]):
        first = group.sort_values("rank").head(PROMOTED)
        tokens = texts(token_text(int(token)) for token in first["token"])
        found.append([kind, int(sign), tokens, numbers(first["value"])])
    return sorted(found, key=lambda item: (item[0], -item[1]))


def _histogram(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values, BINS, range=(0, float(values.max())))
    return {"counts": counts.tolist(), "top": number(edges[-1])}
