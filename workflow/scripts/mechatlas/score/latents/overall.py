"""Numbers for all latents of a dictionary: means over latents with intervals, and how many beat every control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.io import rng_for
from mechatlas.score.latents.names import BASELINES, OWN
from mechatlas.score.latents.summary import METRICS
from mechatlas.stats.bootstrap import interval

#: Metric by which latents are compared with their controls.
MAIN_METRIC = "correlation"


def failing_controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of controls that should fail: neither the explanation's own nor baselines."""
    return rows[~rows["control"].isin((OWN, *BASELINES))]


def latent_headlines(
    explanations: Sequence[Mapping[str, Any]],
    scores: pd.DataFrame,
    statistics: pd.DataFrame,
    settings: Mapping[str, Any],
    random_weights: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Return the numbers of a page, by explainer.

    Parameters
    ----------
    explanations : sequence of mapping
        Records without controls.
    scores : data frame
        scores.parquet.
    statistics : data frame
        latent_stats.parquet.
    settings : mapping
        ``bootstrap``, ``confidence``, ``seed``.
    random_weights : data frame, optional
        scores.parquet of the dictionary of the random-weight model.

    Returns
    -------
    dict
        ``explainers``: explainer -> ``latents``, ``explained``, ``scored``, ``reasons``, ``means`` (by metric: value,
        low, high, latents, and the means of controls), ``beats`` (count, of), ``usage``; ``layers``: statistics.
    """
    result: dict[str, Any] = {}
    for explainer in dict.fromkeys(record["explainer"] for record in explanations):
        records = [r for r in explanations if r["explainer"] == explainer]
        rows = scores[scores["explainer"] == explainer]
        own = rows[rows["control"] == OWN]
        known = own[(own["metric"] == MAIN_METRIC) & own["value"].notna()]
        reasons = pd.Series([r["reason"] for r in records if not r["text"]], dtype=object)
        other = None
        if random_weights is not None:
            other = random_weights[random_weights["explainer"] == explainer]
        result[explainer] = {
            "latents": len(records),
            "explained": sum(bool(r["text"]) for r in records),
            "scored": len(known),
            "reasons": {str(k): int(v) for k, v in reasons.value_counts().items()},
            "confidence": settings["confidence"],
            "means": _means(rows, other, settings),
            "beats": _beats(rows),
            "usage": _usage(records),
        }
    return {"explainers": result, "layers": layer_statistics(statistics)}


def layer_statistics(statistics: pd.DataFrame) -> list[dict[str, Any]]:
    """Return counts of latents by layer, over train tokens."""
    rows = []
    for layer, group in statistics[statistics["split"] == "train"].groupby("layer"):
        rows.append(
            {
                **{"layer": int(layer), "latents": len(group)},
                **{flag: int(group[flag].sum()) for flag in ("dead", "dense", "single_token")},
                "active_per_token": float(group["firing_rate"].sum()),
                "tokens": int(group["tokens"].max()),
            }
        )
    return rows


def _means(
    rows: pd.DataFrame, other: pd.DataFrame | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    means = {}
    for metric in METRICS:
        mine = rows[(rows["metric"] == metric) & rows["value"].notna()]
        own = mine.loc[mine["control"] == OWN, "value"].to_numpy(float)
        if not len(own):
            continue
        median = metric == "loss_recovered"  # small denominators make outliers
        middle = np.median if median else np.mean
        rng = rng_for(settings["seed"], "mean over latents", metric)
        drawn = rng.integers(0, len(own), (settings["bootstrap"], len(own)))
        values = np.r_[middle(own), middle(own[drawn], axis=1)]
        low, high = interval(values, settings["confidence"])
        controls = {
            str(name): float(middle(group["value"]))
            for name, group in mine[mine["control"] != OWN].groupby("control")
        }
        if other is not None:
            found = other[(other["metric"] == metric) & (other["control"] == OWN)]["value"].dropna()
            if len(found):
                controls["random_weights"] = float(middle(found))
        means[metric] = {
            **{"value": float(values[0]), "low": low, "high": high, "latents": len(own)},
            **{"controls": controls, "median": median},
        }
    return means


def _beats(rows: pd.DataFrame) -> dict[str, int]:
    tested = failing_controls(rows[(rows["metric"] == MAIN_METRIC) & rows["beats_control"].notna()])
    beats = tested.groupby("unit")["beats_control"].apply(lambda x: x.astype(bool).all())
    return {"count": int(beats.sum()), "of": len(beats)}


def _usage(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = ("requests", "prompt_tokens", "completion_tokens", "price")
    return {
        n: sum(r[n] or 0 for r in records) for n in names if n in (records[0] if records else {})
    }
