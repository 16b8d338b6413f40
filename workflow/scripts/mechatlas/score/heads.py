"""Scores of head explanations on test documents, kept per document and per event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.records import Head, Predictor, Variant
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.io import progress
from mechatlas.score.patterns import SUMS, Truth

Variants = Mapping[Variant, Mapping[Head, Predictor]]
#: Windows predicted at once are bounded by this many attention entries (float32).
ENTRIES_PER_BATCH = 2**20
#: Columns of document_scores.parquet.
COLUMNS = ["layer", "head", "explainer", "control", "doc", *SUMS, "active", "other"]


def score_patterns(
    layer: int,
    windows: pd.DataFrame,
    patterns: np.ndarray,
    vocabulary: Vocabulary,
    variants: Variants,
    active_attention: float,
) -> list[dict[str, Any]]:
    """Compare predicted with true attention rows of one layer, summed per document.

    Parameters
    ----------
    layer : int
    windows : data frame
        Columns ``doc`` and ``tokens``, one row per pattern of the test split.
    patterns : float32 [W, H, T, T]
        The true patterns of these windows.
    vocabulary : Vocabulary
    variants : mapping
        (explainer, control) -> (layer, head) -> program or other predictor
        (`mechatlas.explain.records.variants_of`).
    active_attention : float
        Attention from which a pair counts as active (see `active_counts`).

    Returns
    -------
    list of dict
        One row per head, variant and document, with `COLUMNS`: the sums of `SUMS`, ``active`` and ``other``
        (counts per bin).
    """
    view = TokenView(np.stack(windows["tokens"].to_list()), vocabulary)
    documents, inverse = np.unique(windows["doc"].to_numpy().astype(str), return_inverse=True)
    rows = []
    truths = [Truth(patterns[:, head]) for head in range(patterns.shape[1])]
    scored: dict[tuple[int, Variant], list[dict[str, Any]]] = {}
    for predicted, wanted in _predictions(layer, range(patterns.shape[1]), variants, view):
        for head, variant in wanted:
            sums = _by_document(truths[head].sums(predicted), inverse)
            counts = _by_document(truths[head].active_counts(predicted, active_attention), inverse)
            names = dict(zip(COLUMNS, (layer, head, *variant), strict=False))
            scored[head, variant] = [
                names
                | {"doc": doc}
                | dict(zip(SUMS, sums[d].tolist(), strict=True))
                | {"active": counts[d, 0].astype(np.int32), "other": counts[d, 1].astype(np.int32)}
                for d, doc in enumerate(documents)
            ]
    for head in range(patterns.shape[1]):
        for variant in variants:
            rows += scored.get((head, variant), [])
    return rows


def _predictions(
    layer: int, heads: Iterable[int], variants: Variants, view: TokenView
) -> Iterator[tuple[np.ndarray, list[tuple[int, Variant]]]]:
    """Yield what each predictor of a layer predicts, once, with the (head, variant) that want it.

    A program is that of one head and, swapped, that of another.
    """
    wanted: dict[int, tuple[Predictor, list[tuple[int, Variant]]]] = {}
    for head in heads:
        for variant, programs in variants.items():
            if (layer, head) in programs:
                program = programs[(layer, head)]
                wanted.setdefault(id(program), (program, []))[1].append((head, variant))
    for program, takers in wanted.values():
        yield program.predict(view), takers


def _by_document(values: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    total = np.zeros((inverse.max() + 1, *values.shape[1:]), dtype=values.dtype)
    np.add.at(total, inverse, values)
    return total


def predict_events(
    events: pd.DataFrame,
    tokens: Callable[[np.ndarray], np.ndarray],
    vocabulary: Vocabulary,
    variants: Variants,
) -> pd.DataFrame:
    """Predict the attention of every event by every variant.

    Parameters
    ----------
    events : data frame
        Test events of all heads: layer, head, window, query, key and further columns that are kept.
    tokens : callable
        Maps window ids int [n] to their tokens int [n, T].
    vocabulary : Vocabulary
    variants : mapping
        See `score_patterns`.

    Returns
    -------
    data frame
        The events once per variant, with columns ``explainer``, ``control`` and ``prediction`` (float32 attention).
    """
    window_ids = np.unique(events["window"].to_numpy())
    predictions = {name: np.full(len(events), np.nan, dtype=np.float32) for name in variants}
    length = tokens(window_ids[:1]).shape[1] if len(window_ids) else 1
    size = max(1, ENTRIES_PER_BATCH // length**2)
    batches = [window_ids[i : i + size] for i in range(0, len(window_ids), size)]
    place = np.arange(len(events))
    for batch in progress(batches, desc="predict events", unit="batch"):
        view = TokenView(tokens(batch), vocabulary)
        inside = events["window"].isin(batch).to_numpy()
        for layer, of_layer in events[inside].assign(place=place[inside]).groupby("layer"):
            at = {
                head: (
                    group["place"].to_numpy(),
                    np.searchsorted(batch, group["window"].to_numpy()),
                    group["query"].to_numpy(),
                    group["key"].to_numpy(),
                )
                for head, group in of_layer.groupby("head")
            }
            for predicted, wanted in _predictions(layer, at, variants, view):
                for head, variant in wanted:
                    rows, *entry = at[head]
                    predictions[variant][rows] = predicted[tuple(entry)]
    frames = [
        events.assign(explainer=explainer, control=control, prediction=values)
        for (explainer, control), values in predictions.items()
    ]
    if not frames:
        return events.head(0).assign(explainer="", control="", prediction=np.float32())
    return pd.concat(frames, ignore_index=True).dropna(subset="prediction")
