"""From a config entry and a model to the prompts of a task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from mechatlas.io import UserError, provenance, write_json
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.answers import end_scores
from mechatlas.tasks.audit import audit, audit_text, check_scores, warn_of_guessing
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.collect import Collected, Plan, Task, collect
from mechatlas.tasks.legacy import check_legacy, collect_legacy
from mechatlas.tasks.prompt_files import write_prompts
from mechatlas.tasks.registry import load_task, make_task
from mechatlas.tasks.sequence_pairs import SequenceTask

logger = logging.getLogger(__name__)

PLAN = tuple(field.name for field in fields(Plan))


@dataclass(frozen=True)
class TaskSettings:
    """The config entry of a task, taken apart.

    Attributes
    ----------
    task : Task
    plan : Plan
    bos, leading_blank : bool
        See `mechatlas.tasks.build.PromptBuilder`.
    legacy : bool
        Whether to follow the original procedure, see `mechatlas.tasks.legacy`.
    """

    task: Task
    plan: Plan
    bos: bool = True
    leading_blank: bool = True
    legacy: bool = False


def read_settings(name: str, entry: Mapping[str, Any]) -> TaskSettings:
    """Turn a config entry into a task and a plan.

    Parameters
    ----------
    name : str
        Name of the task.
    entry : mapping
        ``kind``, the keys of `Plan`, ``bos``, ``leading_blank``, and the task's own settings.

    Raises
    ------
    UserError
        If a key is unknown or a value out of its range.
    """
    rest = dict(entry)
    if "kind" not in rest:
        raise UserError(f"tasks.{name}.kind is missing; say what kind of task it is")
    kind = rest.pop("kind")
    try:
        plan = Plan(**{key: rest.pop(key) for key in PLAN if key in rest})
    except UserError as error:
        raise UserError(f"tasks.{name}.{error}") from error
    flags = {key: rest.pop(key) for key in ("bos", "leading_blank", "legacy") if key in rest}
    if kind == "python":
        task = _own_task(name, rest)
    else:
        task = make_task(name, kind, rest)
    if flags.get("legacy"):
        if not isinstance(task, SequenceTask):
            raise UserError(
                f"tasks.{name}.legacy: only tasks of kind sequence have an original procedure; remove it"
            )
        check_legacy(task)
        # The original analyses have no BOS.
        flags["bos"] = False
    return TaskSettings(task, plan, **flags)


def _own_task(name: str, entry: Mapping[str, Any]) -> Task:
    known = ("file", "class", "settings")
    unknown = [key for key in entry if key not in known]
    missing = [key for key in known[:2] if key not in entry]
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"{missing[0]} is missing"
        raise UserError(f"tasks.{name}: {problem}; a task of kind python has {', '.join(known)}")
    return load_task(name, entry["file"], entry["class"], entry.get("settings") or {})


def collect_prompts(
    name: str, settings: TaskSettings, model: Transformer, tokenizer: Tokenizer, seed: int
) -> Collected:
    """Collect the prompts of a task for a model.

    Raises
    ------
    UserError
        See `mechatlas.tasks.collect.collect`; also if the prompts are longer than the model's context.
    """
    builder = PromptBuilder(tokenizer, name, bos=settings.bos, leading_blank=settings.leading_blank)
    measure = partial(end_scores, model)
    if settings.legacy:
        assert isinstance(settings.task, SequenceTask)  # read_settings has seen to it
        return collect_legacy(settings.task, builder, settings.plan, seed, measure)
    return collect(settings.task, builder, settings.plan, seed, measure)


def prepare_prompts(
    prompts: str | Path,
    table: str | Path,
    *,
    name: str,
    task: str,
    settings: Mapping[str, Any],
    model: Transformer,
    tokenizer: Tokenizer,
    seed: int,
) -> None:
    """Write the prompts of a task and their audit.

    Parameters
    ----------
    prompts, table : str or Path
        The files to write (JSON Lines, JSON).
    name : str
        Name of the model.
    task : str
        Name of the task.
    settings : mapping
        Its config entry.
    model, tokenizer
        Of the model.
    seed : int
        Base seed.

    Raises
    ------
    UserError
        See `read_settings`, `collect_prompts` and `mechatlas.tasks.audit.check_scores`.
    """
    read = read_settings(task, settings)
    collected = collect_prompts(task, read, model, tokenizer, seed)
    batch = collected.batch
    clean, corrupted = end_scores(model, batch), end_scores(model, batch, corrupted=True)
    rows = audit(batch, clean, corrupted, collected.tallies)
    logger.info("prompts of %s for %s\n%s", task, name, audit_text(rows))
    check_scores(batch, clean, corrupted)
    warn_of_guessing(task, read.plan.filter, rows)
    facts = provenance(
        model=name,
        model_hash=model.hash,
        tokenizer=tokenizer.hash,
        task=task,
        settings=dict(settings),
        seed=seed,
    )
    differences = {
        "clean_difference": clean.logit_difference,
        "corrupted_difference": corrupted.logit_difference,
    }
    write_prompts(prompts, batch, differences, facts)
    example = {"text": batch.text[0], "corrupted": batch.corrupted_text[0]}
    write_json(table, {"tokens": batch.length, "example": example, "rows": rows}, facts)
