"""The prompts of a task as the methods take them, with what prompts themselves say about their roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.lenses import MemberOrder, member_order
from mechatlas.io import file_digest, provenance, read_json
from mechatlas.models.tokenizer import Tokenizer, load_tokenizer
from mechatlas.models.transformer import Transformer, load
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.interleaved_pairs import InterleavedTask
from mechatlas.tasks.pairs import PairBatch
from mechatlas.tasks.prepare import read_settings
from mechatlas.tasks.prompt_files import read_prompts

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class TaskData:
    """A model and the prompts of one task.

    Attributes
    ----------
    name, task : str
        Of the model and of the task.
    model : Transformer
    tokenizer : Tokenizer
    batch : PairBatch
        Prompts of both splits.
    facts : mapping
        For provenance: model, hash of its weights, task, digest of the prompts.
    """

    name: str
    task: str
    model: Transformer
    tokenizer: Tokenizer
    batch: PairBatch
    facts: Mapping[str, Any]

    @cached_property
    def discovery(self) -> PairBatch:
        """The prompts on which circuits are found."""
        return self.batch.of_split("discovery")

    @cached_property
    def held_out(self) -> PairBatch:
        """The prompts on which circuits are tested; raises `UserError` if there are none."""
        return self.batch.of_split("held_out")

    @property
    def bos(self) -> int | None:
        """The token put first, None where prompts begin without one."""
        return int(self.batch.clean[0, 0]) if self.batch.bos else None


def load_task_data(
    prompts: str | Path, folder: str, name: str, device: str, dtype: str, bos: str | None = None
) -> TaskData:
    """Load a model and the prompts that were made for it.

    Parameters
    ----------
    prompts : str or Path
        ``prompts.jsonl``.
    folder, name : str
        Folder and name of the model.
    device, dtype : str
        See `mechatlas.models.transformer.load`.
    bos : str, optional
        See `mechatlas.models.tokenizer.load_tokenizer`.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the prompts were made with another tokenizer.
    """
    return next(iter(load_tasks([prompts], folder, name, device, dtype, bos).values()))


def load_tasks(
    prompts: Sequence[str | Path],
    folder: str,
    name: str,
    device: str,
    dtype: str,
    bos: str | None = None,
) -> dict[str, TaskData]:
    """Load a model once and the prompts of several tasks, by the names of the tasks (see `load_task_data`)."""
    model = load(folder, device=device, dtype=dtype)
    tokenizer = load_tokenizer(folder, bos)
    tasks = {}
    for path in prompts:
        batch = read_prompts(path, tokenizer=tokenizer.hash)
        facts = provenance(
            model=name, model_hash=model.hash, task=batch.task, prompts=file_digest(path)
        )
        tasks[batch.task] = TaskData(name, batch.task, model, tokenizer, batch, facts)
    return tasks


def accepted_shares(audit: str | Path) -> dict[str, float | None]:
    """Return which share of candidates passed the filter, by split, from the audit of the prompts."""
    rows = read_json(audit)["rows"]
    return {row["split"]: row["acceptance"] for row in rows if row["group"] == "all"}


def arrays_of(batch: PairBatch) -> Arrays:
    """Return clean and corrupted tokens ``[N, T]``, answers and wrong answers ``[N]`` of a batch."""
    parts = (batch.clean, batch.corrupted, batch.answers, batch.wrong)
    return tuple(torch.from_numpy(part) for part in parts)


def roles_of(batch: PairBatch) -> dict[str, Tensor]:
    """Return role positions ``[N]``, -1 where absent."""
    return {role: torch.from_numpy(positions) for role, positions in batch.roles.items()}


def answer_role(batch: PairBatch) -> str | None:
    """Return the role, other than ``end``, that always holds the answer; None without one."""
    return _role_where(batch, lambda tokens, row: tokens == batch.answers[row])


def repeat_role(batch: PairBatch) -> str | None:
    """Return the role, other than ``end``, whose token always occurs earlier in the prompt; None without one."""

    def occurs_before(tokens: np.ndarray, row: np.ndarray, at: np.ndarray) -> np.ndarray:
        before = np.arange(batch.length) < at[:, None]
        return ((batch.clean[row] == tokens[:, None]) & before).any(1)

    return _role_where(batch, occurs_before, with_position=True)


def order_of(data: TaskData, settings: Mapping[str, Any]) -> MemberOrder | None:
    """Return the sequence that a task continues, None if it has none (``settings``: its config entry)."""
    read = read_settings(data.task, settings)
    task = read.task.months if isinstance(read.task, InterleavedTask) else read.task
    builder = PromptBuilder(
        data.tokenizer, data.task, bos=read.bos, leading_blank=read.leading_blank
    )
    return member_order(task, builder)


def _role_where(batch: PairBatch, holds, *, with_position: bool = False) -> str | None:
    for role, positions in batch.roles.items():
        row = np.flatnonzero(positions >= 0)
        if role == "end" or not len(row):
            continue
        at = positions[row]
        tokens = batch.clean[row, at]
        if (holds(tokens, row, at) if with_position else holds(tokens, row)).all():
            return role
    return None
