"""What every component does on a task, from forward passes alone: patching, measured roles, lenses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.head_tables import (
    direct_table,
    member_residuals,
    ov_matrix_table,
    ov_table,
)
from mechatlas.circuits.patching_study import patch_task
from mechatlas.circuits.resume import Parts
from mechatlas.circuits.roles import RoleThresholds, label_roles, measure_roles
from mechatlas.circuits.task_data import (
    TaskData,
    answer_role,
    arrays_of,
    members_of,
    repeat_role,
    roles_of,
)


def study_components(
    data: TaskData,
    task: Mapping[str, Any],
    patching: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    lens: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    bootstrap: int,
    parts: Parts | None = None,
) -> dict[str, pd.DataFrame]:
    """Measure all components of a model on the discovery prompts of a task.

    Parameters
    ----------
    data : TaskData
    task : mapping
        Its config entry.
    patching, thresholds, lens : mapping
        ``circuits.patching``, ``circuits.roles`` and ``circuits.lens`` of the config.
    seed, confidence, bootstrap
        Of the intervals.
    parts : Parts, optional
        Where finished parts of the patching are kept.

    Returns
    -------
    dict of str to DataFrame
        ``effects``, ``pair_effects``, ``strongest``, ``roles``, ``direct``, ``ov``, ``ov_matrix``; see docs/files.md.
    """
    options = {"seed": seed, "confidence": confidence, "replicates": bootstrap}
    patched = patch_task(data, patching, parts=parts, **options)
    members = members_of(data, task)
    clean, _, answers, wrong = arrays_of(data.discovery)
    heads = measure_roles(
        data.model, clean, answers, wrong, roles_of(data.discovery),
        seed=seed, bos=data.bos, members=None if members is None else members[0],
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
        "direct": direct_table(data.model, clean, answers, wrong, **options),
        **_member_tables(data, clean, members),
    }


def _member_tables(
    data: TaskData, clean: Tensor, members: tuple[Tensor, list[str]] | None
) -> dict[str, pd.DataFrame]:
    if members is None:
        return {"ov": pd.DataFrame(columns=_OV), "ov_matrix": pd.DataFrame(columns=_OV_MATRIX)}
    tokens, texts = members
    shown = [at for role, at in roles_of(data.discovery).items() if role != "end"]
    x, indices = member_residuals(data.model, clean, torch.stack(shown, dim=1), tokens)
    return {
        "ov": ov_table(data.model, x, indices, tokens),
        "ov_matrix": ov_matrix_table(data.model, x, indices, tokens, texts),
    }


_OV = ["component", "layer", "head", "tokens", "copy", "next", "negative_copy", "negative_next"]
_OV.append("chance")
_OV_MATRIX = ["layer", "head", "attended", "promoted", "logit"]
