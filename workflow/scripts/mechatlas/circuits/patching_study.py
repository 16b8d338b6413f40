"""All patching sweeps of a task, as tables: effects, effects in every pair, the strongest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechatlas.circuits.effects import (
    above,
    effects_table,
    pair_effects,
    text_heatmap,
    top,
)
from mechatlas.circuits.layer_batches import LayerBatch
from mechatlas.circuits.patching import HEAD_POINTS, Sweep, patch, role_places
from mechatlas.circuits.resume import Store
from mechatlas.circuits.task_data import TaskData, arrays_of, roles_of

logger = logging.getLogger("mechatlas")

KEYS = ("component", "layer", "head", "point", "place", "direction", "metric")
STRONGEST = ("effect", "low", "high", "p_fdr")


@dataclass(frozen=True)
class PatchingTables:
    """What patching found.

    Attributes
    ----------
    effects, pair_effects, strongest : DataFrame
        See docs/files.md.
    heads : float array [L, H] or None
        Effect of every head's output, all positions, denoising, first metric; None if that was not swept.
    """

    effects: pd.DataFrame
    pair_effects: pd.DataFrame
    strongest: pd.DataFrame
    heads: np.ndarray | None


def patch_task(
    data: TaskData,
    settings: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    replicates: int,
    parts: Store | None = None,
) -> PatchingTables:
    """Patch every point of the settings on the discovery prompts.

    Parameters
    ----------
    data : TaskData
    settings : mapping
        ``circuits.patching`` of the config.
    seed : int
    confidence : float
    replicates : int
    parts : Store, optional
        Where finished parts are kept.
    """
    effects, pairs, heads = [], [], None
    for sweep in _sweeps(data, settings, parts):
        if _without_gap(sweep):
            logger.warning(
                "patching: %s is the same in clean and corrupted runs; left out", sweep.metric
            )
            continue
        table = effects_table(sweep, seed=seed, confidence=confidence, replicates=replicates)
        effects.append(table)
        values = pair_effects(sweep).astype(np.float32)
        rows = table[list(KEYS)].copy()
        rows["effect"] = list(values.reshape(-1, values.shape[-1]))
        pairs.append(rows)
        if heads is None and _is_head_sweep(sweep, settings["metrics"][0]):
            heads = (
                table.loc[table["place"] == "all", "effect"].to_numpy().reshape(values.shape[0], -1)
            )
            logger.info("effect of each head's output, denoising\n%s", text_heatmap(heads))
    table = pd.concat(effects, ignore_index=True)
    strongest = strongest_rows(table, settings["top"], settings["threshold"])
    return PatchingTables(table, pd.concat(pairs, ignore_index=True), strongest, heads)


def patch_layers(data: TaskData, settings: Mapping[str, Any], batch: LayerBatch) -> None:
    """Do the part of `patch_task` that belongs to some layers, and keep it in ``batch``."""
    for _ in _sweeps(data, settings, batch, batch.layers):
        pass


def strongest_rows(effects: pd.DataFrame, count: int, threshold: float) -> pd.DataFrame:
    """Return the ``count`` largest absolute effects of each sweep and place, and all above a threshold.

    Returns
    -------
    DataFrame
        ``point``, ``direction``, ``place``, ``rank`` (from 1), ``component``, ``effect``, ``low``, ``high``, ``p_fdr``,
        ``above``; of the first metric.
    """
    keys, rows = ["point", "direction", "place"], []
    first = effects[effects["metric"] == effects["metric"].iloc[0]]
    for values, part in first.groupby(keys, sort=False):
        listed = max(count, len(above(part, threshold)))
        chosen = top(part, listed)
        chosen = chosen[["component", *STRONGEST]].assign(**dict(zip(keys, values, strict=True)))
        chosen["rank"] = np.arange(1, len(chosen) + 1)
        chosen["above"] = chosen["effect"].abs() > threshold
        rows.append(chosen)
    columns = [*keys, "rank", "component", *STRONGEST, "above"]
    return pd.concat(rows, ignore_index=True)[columns]


def _sweeps(
    data: TaskData,
    settings: Mapping[str, Any],
    parts: Store | None,
    layers: range | None = None,
) -> Iterator[Sweep]:
    arrays, length = arrays_of(data.discovery), data.discovery.length
    everywhere = {"all": torch.ones_like(arrays[0], dtype=torch.bool)}
    by_role = everywhere | role_places(roles_of(data.discovery), length)
    for point in settings["points"]:
        places = by_role if point in settings["role_points"] else everywhere
        for direction in settings["directions"]:
            yield from patch(
                data.model, *arrays,
                point=point, direction=direction, places=places, metrics=settings["metrics"], parts=parts,
                layers=layers,
            )  # fmt: skip


def _without_gap(sweep: Sweep) -> bool:
    return sweep.metric != "logit_difference" and not bool((sweep.clean != sweep.corrupted).any())


def _is_head_sweep(sweep: Sweep, metric: str) -> bool:
    return (sweep.point, sweep.direction, sweep.metric) == (HEAD_POINTS[0], "denoise", metric)
