"""From the metric of every patched run to a table of effects with intervals.

The effect of a patch is the share of the gap between clean and corrupted run that it closes (``denoise``: (patched -
corrupted) / (clean - corrupted)) or opens (``noise``: (clean - patched) / (clean - corrupted)). Two averages over pairs
are in use: the ratio of means, mean(change) / mean(gap), and the mean of ratios, mean(change / gap), which pairs with a
small gap can dominate. Both are reported; intervals come from resampling pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mechatlas.circuits.components import head_name, mlp_name
from mechatlas.circuits.patching import HEAD_POINTS, Sweep
from mechatlas.io import UserError, rng_for
from mechatlas.stats.bootstrap import (
    adjust_fdr,
    document_weights,
    intervals,
)
from mechatlas.stats.t_test import t_p_values

SMALL_GAP = 0.05  # of the mean absolute gap: below it a pair has no ratio of its own
REPLICATES = 1000


def effect_rows(
    change: np.ndarray,
    gap: np.ndarray,
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Average the effects of C components over N pairs.

    Parameters
    ----------
    change : float array [C, N]
        Change of the metric in the direction of the effect; NaN where a pair lacks the place.
    gap : float array [N]
        Difference of the metric between the clean and the corrupted run.
    seed : int
        Base seed of the resampling.
    confidence : float
    replicates : int

    Returns
    -------
    DataFrame [C rows]
        ``pairs``, ``change`` (mean), ``effect`` (ratio of means) with ``low`` and ``high``, ``mean_of_ratios`` with
        ``ratio_low`` and ``ratio_high`` (over ``ratio_pairs`` pairs whose gap is not small), ``p`` (that the mean
        change is zero, two-sided, by a t-test over pairs in which changes within the rounding of the gaps count as
        zero) and ``p_fdr`` (Benjamini-Hochberg over the C components).
    """
    known = np.isfinite(change)
    weights = document_weights(len(gap), replicates, rng_for(seed, "effects"))
    wide = np.abs(gap) >= SMALL_GAP * np.abs(gap).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        per_pair = np.where(known & wide, change / gap, 0.0)
        ratio = _sums(np.where(known, change, 0.0), weights) / _sums(known * gap, weights)
        mean = _sums(per_pair, weights) / _sums((known & wide).astype(float), weights)
    out = {"pairs": known.sum(1), "change": _nan_mean(change)}
    out["effect"], out["low"], out["high"] = ratio[:, 0], *intervals(ratio, confidence)
    out["mean_of_ratios"], out["ratio_low"], out["ratio_high"] = (
        mean[:, 0],
        *intervals(mean, confidence),
    )
    out["ratio_pairs"] = (known & wide).sum(1)
    out["p"] = t_p_values(change, np.abs(gap).mean())
    out["p_fdr"] = adjust_fdr(out["p"])
    return pd.DataFrame(out)


def effects_table(
    sweep: Sweep, *, seed: int, confidence: float = 0.95, replicates: int = REPLICATES
) -> pd.DataFrame:
    """Return one row per layer, head and place of a patching sweep.

    Returns
    -------
    DataFrame
        ``component`` (``L1.KV0`` for shared keys and values), ``layer``, ``head`` (-1 for a point of the whole
        layer), ``point``, ``place``, ``direction``,
        ``metric``, and the columns of `effect_rows`.

    Raises
    ------
    UserError
        If clean and corrupted runs have the same metric in every pair, so that there is no effect to share out.
    """
    change, gap = pair_changes(sweep)
    layers, units, places, pairs = change.shape
    stats = effect_rows(
        change.reshape(-1, pairs), gap, seed=seed, confidence=confidence, replicates=replicates
    )
    layer, unit, place = (x.ravel() for x in np.indices((layers, units, places)))
    by_head = sweep.point in HEAD_POINTS
    table = pd.DataFrame(
        {
            "component": [_component(sweep, a, b) for a, b in zip(layer, unit, strict=True)],
            "layer": layer,
            "head": unit if by_head else np.full_like(unit, -1),
            "point": sweep.point,
            "place": np.array(sweep.places, dtype=object)[place],
            "direction": sweep.direction,
            "metric": sweep.metric,
        }
    )
    return pd.concat([table, stats], axis=1)


def pair_changes(sweep: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """Return the change of every patch ``[L, U, P, N]`` in the direction of the effect, and the gap ``[N]``."""
    clean, corrupted, patched = (
        x.double().cpu().numpy() for x in (sweep.clean, sweep.corrupted, sweep.patched)
    )
    gap = clean - corrupted
    if not np.abs(gap).max() > 0:
        raise UserError(
            f"patching: {sweep.metric} is the same in the clean and the corrupted run of every pair, so no patch can "
            "have an effect; check the corruption of the task"
        )
    change = patched - corrupted if sweep.direction == "denoise" else clean - patched
    return change, gap


def pair_effects(sweep: Sweep) -> np.ndarray:
    """Return the effect in every pair, ``[L, U, P, N]``; NaN where the gap is zero or the place is absent."""
    change, gap = pair_changes(sweep)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, np.nan, change / gap)


def top(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the rows with the largest absolute effects, largest first (ties in the order of the table)."""
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order[:count]].reset_index(drop=True)


def above(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the rows whose absolute effect exceeds a threshold, largest first.

    Raises
    ------
    UserError
        If the threshold is negative.
    """
    if not threshold >= 0:
        raise UserError(f"effect threshold {threshold}: give a number of at least 0, such as 0.1")
    return top(table[table["effect"].abs() > threshold], len(table))


def text_heatmap(values: np.ndarray, columns: Sequence[str] | None = None) -> str:
    """Draw effects ``[L, H]`` as text for a log: a sign and one digit of tenths per cell, ``.`` below 0.05."""
    layers, width = values.shape
    heads = columns or [f"H{h}" for h in range(width)]
    size = max(4, *(len(h) + 1 for h in heads))
    lines = ["    " + "".join(h.rjust(size) for h in heads)]
    for layer in range(layers):
        lines.append(f"L{layer}".ljust(4) + "".join(_cell(v).rjust(size) for v in values[layer]))
    return "\n".join(lines)


def _cell(value: float) -> str:
    if not np.isfinite(value):
        return "?"
    if abs(value) < 0.05:
        return "."
    return f"{'+' if value > 0 else '-'}{min(round(abs(value) * 10), 99)}"


def _component(sweep: Sweep, layer: int, unit: int) -> str:
    if sweep.point in HEAD_POINTS:
        return f"L{layer}.KV{unit}" if sweep.shared else head_name(layer, unit)
    return mlp_name(layer) if sweep.point == "mlp_out" else f"L{layer}.{sweep.point}"


def _sums(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sums over resampled pairs, ``[C, replicates + 1]``, the observed sum first."""
    return values @ weights.T


def _nan_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)
