"""Transcoders over a range of sparsity: one trained and measured at a time, then all in one table.

For each kind of decoder, value and seed the same windows come in the same order, as they depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.circuits.graphs.prompt_set import prompt_scores, score_table
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.dictionaries.clt_evaluation import WHOLE, measure_clt
from mechatlas.io import UserError, read_provenance, read_table
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.prompt_files import read_prompts

#: Measures of a transcoder as a whole, those of graphs only where prompts were given.
METRICS = (
    *("fvu", "l0", "kl", "top1_agreement", "loss_recovered_mean", "parameters"),
    *("replacement", "completeness", "replacement_corrected", "completeness_corrected"),
    "mean_path_length",
)


def measure_point(
    clt: CrossLayerTranscoder,
    model: Transformer,
    tokenizer: Tokenizer,
    windows: str | Path,
    chunks: Sequence[str | Path],
    task: str | Path | None,
    *,
    prompts: int,
    bootstrap: int,
    confidence: float,
    seed: int,
    **options: Any,
) -> pd.DataFrame:
    """Measure one transcoder: a row for each of `METRICS` with ``metric``, ``value``, ``low``, ``high``, ``sample``.

    Parameters
    ----------
    task : path, optional
        Prompts of a task; graphs of the first ``prompts`` held-out ones are scored.
    options
        ``causal_windows`` and ``batch_windows`` of `measure_clt`.

    Raises
    ------
    UserError
        As `measure_clt`, or if the task has too few prompts.
    """
    intervals = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    table, _ = measure_clt(clt, model, windows, chunks, **options, **intervals)
    whole = table[table["layer"] == WHOLE].assign(sample=lambda rows: rows["documents"])
    size = sum(tensor.numel() for tensor in clt.tensors().values())
    known = pd.DataFrame({"metric": ["parameters"], "value": [float(size)]})
    parts = [whole, known]
    if task is not None:
        batch = read_prompts(task, split="held_out", tokenizer=tokenizer.hash)
        if prompts > len(batch):
            raise UserError(
                f"{task} has {len(batch)} held-out prompts, but sweeps ask for {prompts}; lower prompts of the sweep "
                "or raise held_out of the task"
            )
        scores = score_table(prompt_scores(model, clt, batch, prompts), **intervals)
        parts.append(scores[scores["prompt"] < 0].assign(sample=prompts))
    joined = pd.concat(parts, ignore_index=True)
    joined = joined[joined["metric"].isin(METRICS)]
    return joined[["metric", "value", "low", "high", "sample"]].reset_index(drop=True)


def sweep_table(evaluations: Sequence[str | Path]) -> pd.DataFrame:
    """Return a row per transcoder: ``decoders``, ``value``, ``seed`` and each measure with ``_low`` and ``_high``.

    Parameters
    ----------
    evaluations : sequence of paths
        Tables of `measure_point`; what each was trained with is in its provenance.

    Raises
    ------
    UserError
        If a table is missing or damaged.
    """
    rows = []
    for path in evaluations:
        table, facts = read_table(path).set_index("metric"), read_provenance(path)
        row: dict[str, Any] = {
            name: facts[name] for name in ("decoders", "value", "seed", "features")
        }
        for metric in table.index:
            row[metric] = table.loc[metric, "value"]
            row |= {f"{metric}_{end}": table.loc[metric, end] for end in ("low", "high")}
        rows.append(row)
    order = ["decoders", "value", "seed"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


def over_seeds(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return ``decoders``, ``value``, and means over seeds of ``l0`` and of a metric, by rising ``l0``."""
    means = table.groupby(["decoders", "value"], as_index=False)[["l0", metric]].mean()
    return means.sort_values(["decoders", "l0"], ignore_index=True)


def matched_difference(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Compare kinds of decoders at the same number of active features.

    Each curve (mean over seeds) is read, by linear interpolation, in the middle of the range of ``l0`` that all kinds
    share.

    Returns
    -------
    DataFrame
        ``decoders``, ``l0``, ``value``, and ``low`` and ``high``: the extremes over seeds, each seed a curve of its own.
        Empty if the ranges do not overlap.
    """
    curves = {
        (kind, seed): part.sort_values("l0")
        for (kind, seed), part in table.groupby(["decoders", "seed"])
    }
    low = max(float(part["l0"].min()) for part in curves.values())
    high = min(float(part["l0"].max()) for part in curves.values())
    if low > high:
        return pd.DataFrame(columns=["decoders", "l0", "value", "low", "high"])
    middle, found = (low + high) / 2, _by_kind(curves, metric, (low + high) / 2)
    rows = [(k, middle, np.mean(v), np.min(v), np.max(v)) for k, v in found.items()]
    return pd.DataFrame(rows, columns=["decoders", "l0", "value", "low", "high"])


def _by_kind(
    curves: Mapping[tuple[str, int], pd.DataFrame], metric: str, at: float
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for (kind, _), part in curves.items():
        value = np.interp(at, part["l0"].to_numpy(), part[metric].to_numpy())
        found.setdefault(kind, []).append(float(value))
    return found
