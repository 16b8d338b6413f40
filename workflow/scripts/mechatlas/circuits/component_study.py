"""What every component does on a task, from forward passes alone: patching, measured roles, lenses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechatlas.circuits.lenses import LensSettings, measure_lenses
from mechatlas.circuits.patching_study import patch_task
from mechatlas.circuits.resume import Store
from mechatlas.circuits.roles import RoleThresholds, label_roles, measure_roles
from mechatlas.circuits.task_data import (
    TaskData,
    answer_role,
    arrays_of,
    order_of,
    repeat_role,
    roles_of,
)


def study_components(
    data: TaskData,
    task: Mapping[str, Any],
    patching: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    bootstrap: int,
    parts: Store | None = None,
) -> dict[str, pd.DataFrame]:
    """Measure all components of a model on the discovery prompts of a task.

    Parameters
    ----------
    data : TaskData
    task : mapping
        Its config entry.
    patching, thresholds : mapping
        ``circuits.patching`` and ``circuits.roles`` of the config.
    seed, confidence, bootstrap
        Of the intervals.
    parts : Store, optional
        Where finished parts of the patching are kept.

    Returns
    -------
    dict of str to DataFrame
        ``effects``, ``pair_effects``, ``strongest``, ``roles``, and those of `measure_lenses`; see docs/files.md.
    """
    options = {"seed": seed, "confidence": confidence, "replicates": bootstrap}
    patched = patch_task(data, patching, parts=parts, **options)
    order = order_of(data, task)
    clean, _, answers, wrong = arrays_of(data.discovery)
    heads = measure_roles(
        data.model, clean, answers, wrong, roles_of(data.discovery),
        seed=seed, bos=data.bos, members=None if order is None else order.tokens,
        effects=patched.heads,
    )  # fmt: skip
    labels = label_roles(
        heads,
        answer_role=answer_role(data.discovery),
        repeat_role=repeat_role(data.discovery),
        thresholds=RoleThresholds(**thresholds),
    )
    return {
        "effects": patched.effects,
        "pair_effects": patched.pair_effects,
        "strongest": patched.strongest,
        "roles": heads.assign(labels=labels.map(", ".join)),
        **measure_lenses(
            data.model, data.discovery, lambda token: data.tokenizer.strings([token])[0],
            LensSettings(seed, confidence, bootstrap), bos=data.tokenizer.bos_id, order=order,
        ),
    }  # fmt: skip
