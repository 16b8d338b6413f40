"""Data of the pages of a transcoder's features: the most important of each layer, with their strongest examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechatlas.figures.atlas.data import number, texts, write_data
from mechatlas.figures.atlas.examples import AFTER, BEFORE
from mechatlas.io import read_table

#: Features of each layer that are shown.
MOST = 60
KEY = ["layer", "feature"]


def write_features(
    folder: Path,
    model: str,
    source: str,
    transcoder: str,
    place: Path,
    texts_of: Mapping[int, Sequence[str]],
) -> dict[str, Any]:
    """Write the list and the examples of a transcoder's features; return what the core says about them.

    Parameters
    ----------
    folder : Path
        Of the atlas.
    model, source, transcoder : str
    place : Path
        Results of the transcoder.
    texts_of : mapping
        Window -> texts of its tokens.
    """
    table = read_table(place / "features.parquet")
    shown = important(table)
    examples = _examples(read_table(place / "examples.parquet"), shown, texts_of)
    rows = [
        {
            "unit": f"L{row.layer}/F{row.feature}",
            "layer": int(row.layer),
            "share": number(row.share, 3),
            "density": number(row.density, 3),
            "mean": number(row.mean_active),
            "max": number(row.max),
            "norm": number(row.decoder_norm),
            "examples": examples.get((row.layer, row.feature), []),
        }
        for row in shown.itertuples()
    ]
    write_data(folder, f"{model}/{source}/transcoder-{transcoder}", rows)
    alive = int((table["density"] > 0).sum())
    return {"source": source, "transcoder": transcoder, "alive": alive, "shown": len(rows)}


def important(table: pd.DataFrame) -> pd.DataFrame:
    """Return the features of each layer that write most, with ``share``: of what all features of the layer write.

    What a feature writes is its density times its mean activation times the norm of its decoder.
    """
    written = table["density"] * table["mean_active"].fillna(0) * table["decoder_norm"]
    table = table.assign(
        share=written / written.groupby(table["layer"]).transform("sum").clip(lower=1e-300)
    )
    order = table.sort_values(["layer", "share", "feature"], ascending=[True, False, True])
    return order[order["share"] > 0].groupby("layer", sort=False).head(MOST)


def _examples(
    table: pd.DataFrame, shown: pd.DataFrame, texts_of: Mapping[int, Sequence[str]]
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    kept = table.merge(shown[KEY], on=KEY).sort_values([*KEY, "rank"])
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in kept.itertuples():
        strings = texts_of[int(row.window)]
        start, stop = max(1, row.position - BEFORE), min(len(strings), row.position + AFTER + 1)
        example = {
            "at": int(row.position - start),
            "cut": [start > 1, stop < len(strings)],
            "tokens": texts(strings[at] for at in range(start, stop)),
            "value": number(row.activation),
        }
        found.setdefault((row.layer, row.feature), []).append(example)
    return found
