"""From sums per document to scores with intervals, controls and adjusted p-values.

Every metric of every head is bootstrapped over test documents. A control is the same metric for an explanation that
should fail; its documents are resampled together with the explanation's, so the difference has its own interval and
p-value. p-values are adjusted over the heads of a model (Benjamini and Hochberg 1995), apart for each metric and
control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.records import OWN, SHARED
from mechatlas.io import rng_for
from mechatlas.score.patterns import (
    LOWER_IS_BETTER,
    PATTERN_METRICS,
    SUMS,
)
from mechatlas.stats.bootstrap import (
    adjust_fdr,
    document_weights,
    interval,
    intervals,
    replicate,
    sign_p_value,
)
from mechatlas.stats.ranking import (
    BINS,
    average_precision_replicates,
    roc_auc_replicates,
    score_bins,
)

NEGATIVES = ("negative_same_query", "negative_same_key", "negative_same_distance")
HEAD = ["layer", "head"]
VARIANT = [*HEAD, "explainer", "control"]
#: Every metric of an explanation that has a program.
METRICS = (
    *PATTERN_METRICS,
    "average_precision",
    *(f"auc_{role}" for role in NEGATIVES),
    "loss_recovered",
)
COLUMNS = [
    "unit", "layer", "head", "explainer", "metric", "control", "value", "low", "high", "difference",
    "difference_low", "difference_high", "p_value", "q_value", "beats_control", "documents", "status", "reason",
]  # fmt: skip


@dataclass(frozen=True)
class SummarySettings:
    """Settings of the summary (config: score).

    Attributes
    ----------
    bootstrap : int
        Replicates.
    confidence : float
        Of the intervals, such as 0.95.
    fdr : float
        False discovery rate at which a head counts as better than a control.
    min_events : int
        Fewest top events, and fewest matched negatives of a kind, for an AUC.
    seed : int
    """

    bootstrap: int
    confidence: float
    fdr: float
    min_events: int
    seed: int


@dataclass
class Metric:
    """Replicates of one metric of one head under one variant, or why there are none."""

    values: np.ndarray | None
    documents: int = 0
    reason: str = ""


Key = tuple[int, int, str, str, str]  # layer, head, explainer, metric, control
Table = dict[Key, Metric]


def summarise(
    documents: pd.DataFrame,
    events: pd.DataFrame,
    losses: pd.DataFrame,
    settings: SummarySettings,
    records: Iterable[Mapping[str, Any]] = (),
) -> pd.DataFrame:
    """Score every head on every metric against every control.

    Parameters
    ----------
    documents : data frame
        Pattern sums per head, explainer, control and document (`mechatlas.score.heads.score_patterns`), the rows of a
        random-weight model included as control "random_weights".
    events : data frame
        Event predictions (`mechatlas.score.heads.predict_events`), likewise.
    losses : data frame
        layer, head, explainer, variant, doc, loss, tokens of the single-head replacements.
    settings : SummarySettings
    records : iterable of mapping
        Explanations; those without a program are unscored on every metric, with the reason.

    Returns
    -------
    data frame
        Columns `COLUMNS`. Rows with control "none" hold the explanation's own score; the others hold the control's
        score and the explanation's advantage over it (positive is better, also where less is better).
    """
    table: Table = {}
    _add_patterns(table, documents, settings)
    _add_events(table, events, settings)
    _add_losses(table, losses, settings)
    table = _for_each_explainer(table)
    _add_missing(table, records)
    frame = pd.DataFrame(_rows(table, settings), columns=COLUMNS)
    for _, group in frame[frame["control"] != OWN].groupby(["explainer", "metric", "control"]):
        frame.loc[group.index, "q_value"] = adjust_fdr(group["p_value"].to_numpy())
    significant = (frame["q_value"] <= settings.fdr) & (frame["difference"] > 0)
    frame["beats_control"] = significant.where(frame["q_value"].notna(), None)
    return frame


def with_control(own: pd.DataFrame, random_weights: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Append what the same explainer reached on the random-weight model as control "random_weights"."""
    frames = [own]
    for frame in random_weights:
        plain = frame[frame["control"] == OWN]
        frames.append(plain.assign(control="random_weights"))
    return pd.concat(frames, ignore_index=True)


def _for_each_explainer(table: Table) -> Table:
    """Give every explainer of a head the controls that belong to the head."""
    own = {key[:3] for key in table if key[-1] == OWN}
    result: Table = {}
    for (layer, head, explainer, metric, control), item in table.items():
        takers = (
            [name for a, b, name in own if (a, b) == (layer, head)]
            if explainer == SHARED
            else [explainer]
        )
        for taker in takers:
            result[(layer, head, taker, metric, control)] = item
    return result


def _add_missing(table: Table, records: Iterable[Mapping[str, Any]]) -> None:
    """Say of explanations without a program why programs' metrics have no value."""
    for record in records:
        if record["control"] != OWN or record["program"] is not None:
            continue
        reason = record.get("reason") or record.get("program_error") or "a text without a program"
        for metric in METRICS:
            key = (record["layer"], record["head"], record["explainer"], metric, OWN)
            table[key] = Metric(None, 0, str(reason))


def weights_of(
    frame: pd.DataFrame, settings: SummarySettings, use: str
) -> tuple[list[str], np.ndarray]:
    """Return the documents of a frame and their bootstrap weights (`mechatlas.stats.bootstrap.document_weights`)."""
    names = sorted(frame["doc"].astype(str).unique())
    rng = rng_for(settings.seed, "bootstrap", use)
    return names, document_weights(len(names), settings.bootstrap, rng)


def _add_patterns(table: Table, documents: pd.DataFrame, settings: SummarySettings) -> None:
    if not len(documents):
        return
    names, weights = weights_of(documents, settings, "patterns")
    place = {name: i for i, name in enumerate(names)}
    at = documents["doc"].astype(str).map(place).to_numpy()
    all_sums = documents[list(SUMS)].to_numpy()
    all_counts = np.stack(
        [np.stack(documents[name].to_list()) for name in ("active", "other")], axis=1
    )
    for (layer, head, explainer, control), rows in documents.groupby(VARIANT).indices.items():
        sums = np.zeros((len(names), len(SUMS)))
        sums[at[rows]] = all_sums[rows]
        counts = np.zeros((len(names), 2, BINS))
        counts[at[rows]] = all_counts[rows]
        summed = weights @ sums
        found = {metric: _quietly(f, summed) for metric, f in PATTERN_METRICS.items()}
        found["average_precision"] = average_precision_replicates(
            counts[:, 0], counts[:, 1], weights
        )
        for metric, values in found.items():
            reason = "" if np.isfinite(values[0]) else _undefined(metric)
            key = (int(layer), int(head), str(explainer), metric, str(control))
            table[key] = Metric(None if reason else values, len(rows), reason)


def _quietly(statistic: Callable[[np.ndarray], np.ndarray], totals: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistic(totals)


def _undefined(metric: str) -> str:
    if metric == "average_precision":
        return "no pair of the test patterns is active"
    return "the predicted or the true pattern is constant"


def _add_events(table: Table, events: pd.DataFrame, settings: SummarySettings) -> None:
    if not len(events):
        return
    names, weights = weights_of(events, settings, "events")
    place = {name: i for i, name in enumerate(names)}
    # A top event and its matched negatives are found by the place of the top event.
    length = int(events[["query", "key"]].to_numpy().max()) + 1
    places = _place(events, "query", "key", length)
    anchors = _place(events, "anchor_query", "anchor_key", length)
    of_role = {role: (events["role"] == role).to_numpy() for role in ("top", *NEGATIVES)}
    cells = events["doc"].astype(str).map(place).to_numpy() * BINS
    cells += score_bins(events["prediction"].to_numpy())
    for (layer, head, explainer, control), rows in events.groupby(VARIANT).indices.items():
        top = rows[of_role["top"][rows]]
        for role in NEGATIVES:
            negative = rows[of_role[role][rows]]
            key = (int(layer), int(head), str(explainer), f"auc_{role}", str(control))
            fewest = min(len(top), len(negative))
            if fewest < settings.min_events:
                table[key] = Metric(
                    None, 0, f"{fewest} test events, fewer than {settings.min_events}"
                )
                continue
            # Only positives whose negative exists count, once for each, so that both sides are matched.
            matched = np.sort(anchors[negative])
            matches = np.searchsorted(matched, places[top], "right")
            matches -= np.searchsorted(matched, places[top], "left")
            positives = _counts(cells[top], len(names), matches)
            negatives = _counts(cells[negative], len(names), np.ones(len(negative)))
            values = roc_auc_replicates(positives, negatives, weights)
            documents = int(((positives + negatives).sum(1) > 0).sum())
            table[key] = Metric(values, documents)


def _place(events: pd.DataFrame, query: str, key: str, length: int) -> np.ndarray:
    """The number of a (window, query, key), float64 (NaN where an event has no anchor)."""
    window = events["window"].to_numpy().astype(np.float64)
    return (window * length + events[query].to_numpy()) * length + events[key].to_numpy()


def _counts(cells: np.ndarray, documents: int, matches: np.ndarray) -> np.ndarray:
    counts = np.bincount(cells, matches, minlength=documents * BINS)
    return counts.reshape(documents, BINS)


def _add_losses(table: Table, losses: pd.DataFrame, settings: SummarySettings) -> None:
    names, weights = weights_of(losses, settings, "losses")
    wide = losses.assign(doc=losses["doc"].astype(str)).pivot_table(
        index=[*HEAD, "explainer", "variant"], columns="doc", values="loss", aggfunc="sum"
    )[names]
    model = wide.loc[(-1, -1, SHARED, "model")].to_numpy()
    for layer, head in sorted({(a, b) for a, b, *_ in wide.index if a >= 0}):
        mean = wide.loc[(layer, head, SHARED, "mean_pattern")].to_numpy()
        harm = replicate(mean - model, weights, lambda t: t)
        low, high = interval(harm, settings.confidence)
        for explainer, variant in wide.loc[(layer, head)].index.drop((SHARED, "mean_pattern")):
            key = (layer, head, str(explainer), "loss_recovered", str(variant))
            if not low > 0:
                table[key] = Metric(
                    None, 0, "mean-pattern ablation does not raise the loss beyond its interval"
                )
                continue
            loss = wide.loc[(layer, head, explainer, variant)].to_numpy()
            sums = np.stack([mean - loss, mean - model], 1)
            table[key] = Metric(replicate(sums, weights, lambda t: t[:, 0] / t[:, 1]), len(names))


def _rows(table: Table, settings: SummarySettings) -> list[dict[str, Any]]:
    """Rows of the summary in the order of their keys, with all intervals computed together."""
    keys = sorted(table)
    rows = {key: _plain_row(key, table[key]) for key in keys}
    scored = {key: table[key].values for key in keys if table[key].values is not None}
    differences = {}
    for key, values in scored.items():
        own = scored.get((*key[:-1], OWN))
        if key[-1] != OWN and own is not None:
            sign = -1 if key[3] in LOWER_IS_BETTER else 1
            differences[key] = sign * (own - values)
    for found, prefix in ((scored, ""), (differences, "difference_")):
        if found:
            limits = intervals(np.stack(list(found.values())), settings.confidence)
            for key, low, high in zip(found, *limits.tolist(), strict=True):
                rows[key][f"{prefix}low"], rows[key][f"{prefix}high"] = low, high
    for key, values in scored.items():
        rows[key]["value"] = values[0]
    for key, difference in differences.items():
        rows[key]["difference"] = difference[0]
        rows[key]["p_value"] = sign_p_value(difference)
    return [rows[key] for key in keys]


def _plain_row(key: Key, item: Metric) -> dict[str, Any]:
    layer, head, explainer, metric, control = key
    return dict.fromkeys(COLUMNS, np.nan) | {
        "unit": f"L{layer}.H{head}",
        "layer": layer,
        "head": head,
        "explainer": explainer,
        "metric": metric,
        "control": control,
        "documents": item.documents,
        "status": "scored" if item.values is not None else "unscored",
        "reason": item.reason,
    }
