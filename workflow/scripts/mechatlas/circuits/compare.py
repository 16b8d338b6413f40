"""Circuits of all tasks of a model: overlap, one on the data of another, and what removing them does to generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.circuits.components import Graph
from mechatlas.circuits.generation import generate, match_against_random, mean_outputs
from mechatlas.circuits.node_study import make_ablation
from mechatlas.circuits.shared import cross_task, overlap
from mechatlas.circuits.task_data import TaskData, arrays_of
from mechatlas.io import UserError, progress, read_jsonl
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.models.transformer import Transformer

OVERLAP = (
    *("method", "first", "second", "heads_jaccard", "heads_shared"),
    *("mlps_jaccard", "mlps_shared"),
)
GENERATION = (
    *("circuit", "data", "removed", "prompts", "tokens", "full", "exact"),
    *("random_mean", "random_min", "p", "count"),
)
Questions = tuple[list[list[int]], list[list[int]]]


def overlap_table(model: Transformer, circuits: Mapping[str, Mapping[str, Tensor]]) -> pd.DataFrame:
    """Compare circuits pairwise; ``circuits`` is by method, then by task."""
    tables = [
        overlap(Graph.of(model.config), found).assign(method=method)
        for method, found in circuits.items()
        if len(found) > 1
    ]
    if not tables:
        return pd.DataFrame(columns=list(OVERLAP))
    return pd.concat(tables, ignore_index=True)[list(OVERLAP)]


def cross_task_table(
    tasks: Mapping[str, TaskData],
    circuits: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    seed: int,
) -> pd.DataFrame:
    """Measure every circuit on the held-out prompts of every task (``settings``: ``circuits.nodes`` of the config)."""
    ablations = {
        name: make_ablation(data, arrays_of(data.held_out), settings)
        for name, data in tasks.items()
    }
    return cross_task(ablations, circuits, seed=seed)


def generation_tables(
    tasks: Mapping[str, TaskData],
    circuits: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    questions: Mapping[str, Questions],
    *,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Remove the heads of every circuit, or as many random ones in every layer, and count exact answers.

    Parameters
    ----------
    tasks : mapping of str to TaskData
        All of one model.
    circuits : mapping of str to bool Tensor [L, H + 1]
    settings : mapping
        ``circuits.generation`` of the config.
    questions : mapping
        Name of the data to prompts and answers, token ids of any lengths; data without a prompt have no rows.
    seed : int

    Returns
    -------
    (DataFrame, DataFrame)
        Summary and the shares of all random sets, see docs/files.md.
    """
    model = next(iter(tasks.values())).model
    means = None
    if settings["ablation"] == "mean":
        every = [mean_outputs(model, arrays_of(data.held_out)[1]) for data in tasks.values()]
        means = torch.stack(every).mean(0)
    rows, sets = [], []
    pairs = [(c, d) for c in circuits for d, (prompts, _) in questions.items() if prompts]
    for circuit, data in progress(pairs, desc="generation", unit="circuit and task"):
        prompts, answers = questions[data]
        found = match_against_random(
            model, prompts, answers, circuits[circuit],
            seed=seed, count=settings["random_sets"], means=means,
        )  # fmt: skip
        random = found["random"]
        rows.append(
            [circuit, data, int(circuits[circuit][:, :-1].sum()), len(prompts)]
            + [max(map(len, answers)), found["full"], found["circuit"]]
            + [_number(found["mean"]), _number(found["min"]), found["p"], len(random)]
        )
        sets += [(circuit, data, number, value) for number, value in enumerate(random)]
    return (
        pd.DataFrame(rows, columns=list(GENERATION)),
        pd.DataFrame(sets, columns=["circuit", "data", "set", "exact"]),
    )


def task_questions(data: TaskData, count: int, tokens: int) -> Questions:
    """Return held-out prompts of a task and what the unchanged model says after them, its right answer first.

    Prompts after which the answer is not the most likely token are left out.
    """
    clean, _, answers, _ = arrays_of(data.held_out)
    clean, answers = clean[:count], answers[:count]
    said = generate(data.model, clean, tokens)[:, clean.shape[1] :].cpu()
    right = said[:, 0] == answers
    return clean[right].tolist(), said[right].tolist()


def file_questions(path: str, tokenizer: Tokenizer, *, bos: bool) -> dict[str, Questions]:
    """Read prompts and answers of a JSON Lines file with ``task``, ``prompt`` and ``answer`` (texts).

    Raises
    ------
    UserError
        If a line lacks one of them, or the tokenizer joins the end of a prompt with its answer.
    """
    out: dict[str, Questions] = {}
    for number, line in enumerate(read_jsonl(path), 1):
        if not isinstance(line, dict) or not all(
            isinstance(line.get(key), str) for key in ("task", "prompt", "answer")
        ):
            raise UserError(f"{path}, line {number}: needs the texts task, prompt and answer")
        prompt = tokenizer.encode(line["prompt"])
        whole = tokenizer.encode(line["prompt"] + line["answer"])
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise UserError(
                f"{path}, line {number}: the tokenizer joins the prompt with its answer {line['answer']!r}; "
                "begin the answer with a blank, or end the prompt elsewhere"
            )
        prompts, answers = out.setdefault(line["task"], ([], []))
        prompts.append([tokenizer.bos_id, *prompt] if bos else prompt)
        answers.append(whole[len(prompt) :])
    return out


def _number(value: float | None) -> float:
    return np.nan if value is None else value
