"""All chunks' candidates together: the events that one pass over all windows would have given.

What a quantile is: the sample of a head and split is sorted by write norm and cut into parts that carry equal shares
of the total write norm. The last part holds the few strongest events that make up that share, the first one the many
weak ones; so every strength at which the head really writes is represented.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.capture.draws import hash_of
from mechatlas.capture.reservoirs import EVENT, NEGATIVES, ROLES, Reservoir, new_events
from mechatlas.capture.statistics import merged_statistics
from mechatlas.corpus.windows import SPLITS, Windows, read_windows
from mechatlas.io import (
    UserError,
    progress,
    provenance,
    read_json,
    read_table,
    seed_for,
    write_table,
)
from mechatlas.io.tables import table_writer

FINAL_ROLES = (*ROLES, *(f"negative_{kind}" for kind in NEGATIVES))


def merge_events(
    chunks: Sequence[str | Path],
    windows_path: str | Path,
    path: str | Path,
    *,
    topk: int,
    max_per_document: int,
    quantiles: int,
    events_per_quantile: int,
    seed: int,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write the events of all heads as Parquet, one row group per layer.

    Columns: ``layer``, ``head``, ``window``, ``doc``, ``split``, ``query``, ``key``, ``attention``, ``write_norm``,
    ``role``, ``anchor_query``, ``anchor_key``, ``quantile``, ``weight``. Per head and split there are the ``topk``
    strongest events (role ``top``, at most ``max_per_document`` from one document, BOS key excluded), their matched
    negatives (``negative_same_query``, ``negative_same_key``, ``negative_same_distance``, below a tenth of the write
    norm of the top event at the anchor position in the same window), ``events_per_quantile`` events of each quantile
    of write norm (BOS key excluded; see the module's page), and the ``random`` ones. ``weight`` is the number of pairs
    of the split that a ``random`` event (all causal pairs) or a ``quantile`` event (those without BOS key) stands for,
    null for other roles; the anchor and ``quantile`` are -1 where they mean nothing.

    The content does not depend on the number of chunks. Memory is bounded by one layer of two chunks.

    Raises
    ------
    UserError
        If chunks are missing, damaged, of different settings or do not cover the windows, or ``topk`` exceeds
        what they hold.
    """
    table = read_windows(windows_path, tokens=False)
    index = _common_index(chunks, len(table))
    _check(index, topk, max_per_document, quantiles * events_per_quantile)
    with table_writer(path, _schema(), provenance(**(facts or {}), seed=seed)) as write:
        for layer in progress(range(index["layers"]), desc="merge", unit="layers"):
            top = Reservoir(
                "write_norm", topk, table.splits, index["heads"],
                documents=table.doc_codes, per_document=max_per_document,
            )  # fmt: skip
            sample = Reservoir("priority", index["sample"] + 1, table.splits, index["heads"])
            random = []
            for role, events in _candidates(chunks, layer):
                (random.append if role == "random" else (top if role == "top" else sample).add)(
                    events
                )
            drawn = draw_quantiles(
                sample.select(), table.splits, index, quantiles, events_per_quantile,
                seed_for(seed, "quantile events", layer),
            )  # fmt: skip
            write(_arrow(layer, top.select(), drawn, np.concatenate(random), table, index))


def merge_statistics(
    chunks: Sequence[str | Path], path: str | Path, facts: dict[str, Any] | None = None
) -> None:
    """Write `merged_statistics`: how much every head attends to BOS and to the query, and how much it writes."""
    write_table(path, merged_statistics(chunks), provenance(**(facts or {})))


def draw_quantiles(
    sample: np.ndarray,
    splits: np.ndarray,
    index: dict[str, Any],
    quantiles: int,
    events_per_quantile: int,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draw events of every quantile of every head and split from the priority sample of a layer.

    Returns
    -------
    list of (events, quantile, weight)
        For each head and split. ``weight`` is the estimated number of pairs (without BOS key) which an event
        stands for: max(1, threshold / write norm) pairs of the sampled rows (Duffield et al. 2007), times the
        events of the quantile's sample per drawn one, times T - 1 over the sampled rows per window.
    """
    rows = (index["window_len"] - 1) / min(index["query_rows"], index["window_len"] - 1)
    groups = sample["head"].astype(np.int64) * len(SPLITS) + splits[sample["window"]]
    out = []
    for group in np.unique(groups):
        events = sample[groups == group]
        full = len(events) > index["sample"]
        threshold = events["priority"][-1] if full else 0.0
        events = events[: index["sample"]]
        events = events[
            np.lexsort((events["key"], events["query"], events["window"], events["write_norm"]))
        ]
        mass = np.maximum(events["write_norm"].astype(np.float64), threshold)
        middle = (np.cumsum(mass) - mass / 2) / mass.sum()
        quantile = np.minimum((middle * quantiles).astype(np.int64), quantiles - 1)
        number = hash_of(seed, events["head"], events["window"], events["query"], events["key"])
        order = np.lexsort((number, quantile))
        rank = np.arange(len(order)) - np.searchsorted(quantile[order], quantile[order])
        chosen = np.sort(order[rank < events_per_quantile])
        members = np.bincount(quantile, minlength=quantiles)
        share = members / np.maximum(np.minimum(members, events_per_quantile), 1)
        weight = mass / events["write_norm"] * share[quantile] * rows
        out.append((events[chosen], quantile[chosen], weight[chosen]))
    return out


def _candidates(chunks: Sequence[str | Path], layer: int) -> Iterator[tuple[str, np.ndarray]]:
    for chunk in chunks:
        frame = read_table(Path(chunk) / f"events.layer_{layer}.parquet")
        events = np.empty(len(frame), EVENT)
        for name in EVENT.names:
            events[name] = frame[name].to_numpy()
        roles = frame["role"].to_numpy()
        for code, role in enumerate(ROLES):
            yield role, events[roles == code]


def _arrow(
    layer: int,
    top: np.ndarray,
    drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    random: np.ndarray,
    table: Windows,
    index: dict[str, Any],
) -> Any:
    """Return a layer's events as a pyarrow table, ordered by head, role and split, strongest first."""
    import pandas as pd
    import pyarrow as pa

    parts = [_columns(top, "top")]
    parts += [_columns(_negatives(top, kind), f"negative_{kind}", top) for kind in NEGATIVES]
    parts += [_columns(events, "quantile") | {"quantile": q, "weight": w} for events, q, w in drawn]
    weight = _random_weights(random, table, index)
    parts.append(_columns(random, "random") | {"weight": weight})
    frame = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
    frame = frame[frame["query"] >= 0]
    splits = table.splits[frame["window"]]
    roles = frame["role"].map({role: i for i, role in enumerate(FINAL_ROLES)})
    keys = (
        frame["key"],
        frame["query"],
        frame["window"],
        -frame["write_norm"],
        splits,
        roles,
        frame["head"],
    )
    order = np.lexsort(keys)
    frame = frame.iloc[order]
    window = frame["window"].to_numpy()
    frame = frame.assign(
        layer=layer,
        doc=table.docs[window],
        split=np.array(SPLITS, dtype=object)[table.splits[window]],
    )
    schema = _schema()
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)


def _columns(events: np.ndarray, role: str, anchors: np.ndarray | None = None) -> dict[str, Any]:
    names = ("head", "window", "query", "key", "attention", "write_norm")
    return {
        **{name: np.ascontiguousarray(events[name]) for name in names},
        "role": role,
        "anchor_query": -1 if anchors is None else anchors["query"].astype(np.int32),
        "anchor_key": -1 if anchors is None else anchors["key"].astype(np.int32),
        "quantile": -1,
        "weight": np.nan,
    }


def _negatives(top: np.ndarray, kind: str) -> np.ndarray:
    events = new_events(len(top))
    events["head"], events["window"] = top["head"], top["window"]
    for name in ("query", "key", "attention", "write_norm"):
        events[name] = top[f"{kind}_{name}"]
    return events


def _random_weights(events: np.ndarray, table: Windows, index: dict[str, Any]) -> np.ndarray:
    """Return for each random event: causal pairs of its split per random event of the head and split."""
    length = index["window_len"]
    pairs = np.bincount(table.splits, minlength=len(SPLITS)) * (length * (length + 1) // 2)
    splits = table.splits[events["window"]]
    drawn = np.bincount(splits, minlength=len(SPLITS)) / index["heads"]
    return pairs[splits] / drawn[splits]


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("layer", pa.int16()), ("head", pa.int16()), ("window", pa.int32()), ("doc", pa.string()),
            ("split", pa.string()), ("query", pa.int32()), ("key", pa.int32()), ("attention", pa.float32()),
            ("write_norm", pa.float32()), ("role", pa.string()), ("anchor_query", pa.int32()),
            ("anchor_key", pa.int32()), ("quantile", pa.int16()), ("weight", pa.float64()),
        ]
    )  # fmt: skip


def _common_index(chunks: Sequence[str | Path], windows: int) -> dict[str, Any]:
    """Return what the chunks' indices agree in, checking that together they cover every window once."""
    if not chunks:
        raise UserError("no chunks to merge; run capture_heads first")
    indices = [read_json(Path(chunk) / "index.json") for chunk in chunks]
    spans = sorted((i["first"], i["stop"]) for i in indices if i["stop"] > i["first"])
    edges = [0, *(stop for _, stop in spans)]
    if [first for first, _ in spans] != edges[:-1] or edges[-1] != windows:
        raise UserError(
            f"{Path(chunks[0]).parent}: the chunks cover windows {spans} instead of 0 to {windows}; "
            "delete the folder and capture again"
        )
    varying = ("first", "stop", "pattern_windows", "pattern_rounding")
    common = [{key: value for key, value in i.items() if key not in varying} for i in indices]
    for chunk, settings in zip(chunks, common, strict=True):
        different = [key for key in settings if settings[key] != common[0].get(key)]
        if different:
            raise UserError(
                f"{chunk} was captured with another {', '.join(different)} than {chunks[0]}; "
                "delete it and capture again"
            )
    return common[0]


def _check(index: dict[str, Any], topk: int, max_per_document: int, drawn: int) -> None:
    for key, value, most in (
        ("topk", topk, index["candidates"]),
        ("max_per_document", max_per_document, index["max_per_document"]),
        ("quantiles x events_per_quantile", drawn, index["sample"]),
    ):
        if value > most:
            raise UserError(
                f"capture.{key}: {value} is more than the {most} that the chunks hold; "
                "choose less, or delete the chunk folders and capture again"
            )
