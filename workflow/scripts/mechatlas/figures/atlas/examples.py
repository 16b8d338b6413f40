"""Examples of heads and latents as data: pieces of windows, with attention from a query to keys, or activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.capture.patterns import read_patterns
from mechatlas.figures.atlas.data import number, numbers, prefer_test, texts
from mechatlas.figures.examples import SHOWN_ATTENTION, Example, shown_pieces
from mechatlas.figures.html import visible_characters
from mechatlas.io import rng_for

#: Examples of a head: its strongest queries, and queries drawn at random.
TOP, RANDOM = 6, 4
#: Examples of a latent: its strongest activations, and one of each quantile.
TOP_LATENT = 6
BEFORE, AFTER = 18, 6
#: Keys that are drawn for a query, the most attended ones.
MOST_KEYS = 12


def head_example(strings: Sequence[str], example: Example) -> dict[str, Any]:
    """Return an example of a head: where it is from, pieces of its text, the query, keys with their attention."""
    strongest = sorted(example.keys.items(), key=lambda item: -item[1])[:MOST_KEYS]
    keys = dict(sorted(strongest))
    return {
        "doc": visible_characters(example.doc),
        "split": example.split,
        "query": example.query,
        "keys": [[at, number(attention, 3)] for at, attention in keys.items()],
        "length": len(strings),
        "pieces": [
            [piece.start, texts(strings[at] for at in piece)]
            for piece in shown_pieces(len(strings), example.query, list(keys))
        ],
    }


def strongest_queries(events: pd.DataFrame) -> dict[tuple[int, int], list[Example]]:
    """Return the strongest queries of every head, as `mechatlas.figures.examples.top_examples` does of one.

    Parameters
    ----------
    events : data frame
        raw_events.parquet.
    """
    unit = ["layer", "head"]
    place = [*unit, "window", "query"]
    top = prefer_test(events[events["role"] == "top"], unit)
    order = [*unit, "write_norm", "window", "query", "key"]
    top = top.sort_values(order, ascending=[True, True, False, True, True, True])
    top = top.drop_duplicates(place)
    top = top.assign(again=top.duplicated([*unit, "doc"]))
    top = top.sort_values([*unit, "again"], kind="stable").groupby(unit, sort=False).head(TOP)
    named = top[[*place, "doc", "split", "key"]].rename(columns={"key": "strongest"})
    keys = named.merge(events[[*place, "key", "attention"]], on=place).drop_duplicates(
        [*place, "key"]
    )
    held: dict[tuple[int, ...], dict[int, float]] = {}
    rows = keys[[*place, "key", "attention", "strongest"]].itertuples(index=False, name=None)
    for *where, key, attention, strongest in rows:
        if attention >= SHOWN_ATTENTION or key == strongest:
            held.setdefault(tuple(where), {})[int(key)] = float(attention)
    found: dict[tuple[int, int], list[Example]] = {}
    for layer, head, window, query, doc, split, _ in named.itertuples(index=False, name=None):
        keys_ = held[layer, head, window, query]
        example = Example(int(window), str(doc), str(split), int(query), keys_)
        found.setdefault((layer, head), []).append(example)
    return found


class RandomQueries:
    """Queries drawn at random from windows whose attention patterns are kept, with all keys that they attend to.

    Parameters
    ----------
    windows : data frame
        windows.parquet.
    chunks : sequence of path
        Capture folders.
    seed : int
    """

    def __init__(self, windows: pd.DataFrame, chunks: Sequence[str], seed: int) -> None:
        kept = windows[windows["pattern_sample"]]
        if (kept["split"] == "test").any():
            kept = kept[kept["split"] == "test"]
        rng = rng_for(seed, "atlas", "random queries")
        count = min(RANDOM, len(kept))
        chosen = kept.iloc[np.sort(rng.choice(len(kept), count, replace=False))]
        self.rows = list(chosen[["window", "doc", "split"]].itertuples(index=False, name=None))
        lengths = [len(tokens) for tokens in chosen["tokens"]]
        self.queries = [int(rng.integers(min(8, n - 1), n)) for n in lengths]
        self.chunks = chunks

    def of_layer(self, layer: int) -> np.ndarray:
        """Return the attention of the queries: float32 [queries, heads, keys]; no query without kept patterns."""
        if not self.rows:
            return np.zeros((0, 0, 0), np.float32)
        patterns = read_patterns(self.chunks, layer, [window for window, *_ in self.rows])
        return np.stack([patterns[i, :, query] for i, query in enumerate(self.queries)])

    def examples(
        self, attention: np.ndarray, head: int, tokens: Mapping[int, Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Return the examples of a head of the layer whose attention `of_layer` gave."""
        found = []
        for i, ((window, doc, split), query) in enumerate(
            zip(self.rows, self.queries, strict=True)
        ):
            row = attention[i, head]
            keys = {int(k): float(row[k]) for k in np.flatnonzero(row >= SHOWN_ATTENTION)}
            example = Example(int(window), str(doc), str(split), query, keys)
            found.append(head_example(tokens[int(window)], example))
        return found


def latent_examples(
    events: pd.DataFrame, activations: pd.DataFrame, tokens: Mapping[int, Sequence[str]]
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return examples of every latent: the strongest of test documents, then one of each quantile, strong to weak.

    Parameters
    ----------
    events, activations : data frame
        raw_events.parquet and activations.parquet, without controls.
    tokens : mapping
        Window -> texts of its tokens.
    """
    unit = ["layer", "latent"]
    events = prefer_test(events[events["role"].isin(("top", "quantile"))], unit)
    top = events[events["role"] == "top"].drop_duplicates([*unit, "doc"])
    top = top.groupby(unit, sort=False).head(TOP_LATENT)
    order = [*unit, "quantile", "window", "position"]
    sample = events[events["role"] == "quantile"]
    sample = sample.sort_values(order, ascending=[True, True, False, True, True])
    shown = pd.concat([top, sample.drop_duplicates([*unit, "quantile"])])
    place = [*unit, "window"]
    held = activations.merge(shown[place].drop_duplicates(), on=place)
    values: dict[tuple[int, ...], dict[int, float]] = {}
    for *where, position, value in held[[*place, "position", "activation"]].itertuples(
        index=False, name=None
    ):
        values.setdefault(tuple(where), {})[int(position)] = float(value)
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in shown.itertuples():
        own = values.get((row.layer, row.latent, row.window), {})
        example = _latent_example(row, own, tokens[int(row.window)])
        found.setdefault((row.layer, row.latent), []).append(example)
    return found


def _latent_example(row: Any, own: Mapping[int, float], strings: Sequence[str]) -> dict[str, Any]:
    start, stop = max(1, row.position - BEFORE), min(len(strings), row.position + AFTER + 1)
    return {
        "what": "strongest" if row.role == "top" else f"quantile {row.quantile + 1}",
        "doc": visible_characters(str(row.doc)),
        "split": str(row.split),
        "at": int(row.position - start),
        "cut": [start > 1, stop < len(strings)],
        "tokens": texts(strings[at] for at in range(start, stop)),
        "values": numbers(own.get(at, 0.0) for at in range(start, stop)),
    }
