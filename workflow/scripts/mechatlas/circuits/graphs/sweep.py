"""Transcoders over a range of sparsity: one trained and measured at a time, then all in one table.

For each kind of decoder, value and seed the same windows come in the same order, as they depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
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

#: Measures that are compared at equal sparsity.
COMPARED = ("fvu", "kl", "top1_agreement", "replacement_corrected", "completeness_corrected")


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


def at_equal_sparsity(table: pd.DataFrame) -> pd.DataFrame:
    """Compare kinds of decoders at the same number of active features.

    Each curve is read, by linear interpolation, in the middle of the range of ``l0`` that all kinds and seeds share.

    Returns
    -------
    DataFrame
        For each measure of `COMPARED` that there is: ``metric``, ``decoders``, ``l0``, ``value`` (mean over seeds),
        ``low`` and ``high`` (the extremes over seeds), ``seeds``. Empty if the ranges do not overlap.
    """
    curves = {key: part.sort_values("l0") for key, part in table.groupby(["decoders", "seed"])}
    low = max(float(part["l0"].min()) for part in curves.values())
    high = min(float(part["l0"].max()) for part in curves.values())
    rows, middle = [], (low + high) / 2
    for metric in [name for name in COMPARED if name in table and low <= high]:
        found: dict[str, list[float]] = {}
        for (kind, _), part in curves.items():
            value = np.interp(middle, part["l0"].to_numpy(), part[metric].to_numpy())
            found.setdefault(kind, []).append(float(value))
        rows += [
            (metric, kind, middle, np.mean(v), min(v), max(v), len(v)) for kind, v in found.items()
        ]
    names = ["metric", "decoders", "l0", "value", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=names)
