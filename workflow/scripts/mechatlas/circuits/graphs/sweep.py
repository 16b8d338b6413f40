"""Transcoders over a range of sparsity: one measured at a time (see `mechatlas.dictionaries.sweep_tables`).

For each kind of decoder, value and seed the same windows come in the same order, as they depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechatlas.circuits.graphs.prompt_set import prompt_scores, score_table
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.dictionaries.clt_evaluation import WHOLE, measure_clt
from mechatlas.io import UserError
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
