"""``prompts.jsonl``: the prompts of a task as a file, one pair per line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.io import UserError, read_jsonl, read_provenance, write_jsonl
from mechatlas.tasks.pairs import SPLITS, Pair, PairBatch, stack_pairs

TEXTS = ("text", "corrupted_text", "answer_text", "wrong_text")


def write_prompts(
    path: str | Path, batch: PairBatch, scores: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> None:
    """Write a batch as JSON Lines.

    Parameters
    ----------
    path : str or Path
    batch : PairBatch
    scores : mapping
        Name to [N] numbers that go on each line, such as the clean logit difference.
    facts : mapping
        Provenance; should name the tokenizer (``tokenizer``: its hash).
    """
    write_jsonl(path, _records(batch, scores), facts)


def read_prompts(
    path: str | Path, *, split: str | None = None, tokenizer: str | None = None
) -> PairBatch:
    """Read a batch that `write_prompts` has written.

    Parameters
    ----------
    path : str or Path
    split : {"discovery", "held_out"}, optional
        Only the prompts of this split.
    tokenizer : str, optional
        Hash of the tokenizer of the model that the prompts are for.

    Raises
    ------
    UserError
        If the file is missing or damaged, was made with another tokenizer, or has no prompt in the split.
    """
    made_with = read_provenance(path).get("tokenizer")
    if tokenizer is not None and made_with is not None and made_with != tokenizer:
        raise UserError(
            f"{path} was made with another model's tokenizer; delete it and run snakemake again"
        )
    records = read_jsonl(path)
    pairs = [_pair(path, number, record) for number, record in enumerate(records, 1)]
    if not pairs:
        raise UserError(f"{path} holds no prompts; delete it and run snakemake again")
    batch = stack_pairs(records[0]["task"], pairs, bool(records[0]["bos"]))
    return batch.of_split(split) if split else batch


def _records(batch: PairBatch, scores: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    for row in range(len(batch)):
        positions = {role: int(value[row]) for role, value in batch.roles.items()}
        record: dict[str, Any] = {
            "task": batch.task,
            "split": batch.split[row],
            "group": batch.groups[row],
            "cell": batch.cells[row] if batch.cells else batch.groups[row],
            "bos": batch.bos,
            "clean": batch.clean[row].tolist(),
            "corrupted": batch.corrupted[row].tolist(),
            "answer": int(batch.answers[row]),
            "wrong": int(batch.wrong[row]),
            "roles": {role: at for role, at in positions.items() if at >= 0},
        }
        for name in (*TEXTS, "fillers"):
            value = getattr(batch, name)
            if value:
                record[name] = value[row]
        if len(batch.corrupted_answers):
            record["corrupted_answer"] = int(batch.corrupted_answers[row])
        if batch.choices is not None and batch.correct is not None:
            record["choices"] = batch.choices.tolist()
            record["correct"] = batch.correct[row].tolist()
        yield record | {name: float(values[row]) for name, values in scores.items()}


def _pair(path: str | Path, number: int, record: Any) -> Pair:
    """Turn a line into a pair, checking what the methods rely on."""
    try:
        known = {f.name for f in fields(Pair)}
        values = {key: _frozen(value) for key, value in record.items() if key in known}
        pair = Pair(**values)
        length = len(pair.clean)
        sound = (
            isinstance(record["task"], str)
            and isinstance(record["bos"], bool)
            and pair.split in SPLITS
            and length == len(pair.corrupted)
            and all(isinstance(i, int) and i >= 0 for i in (*pair.clean, *pair.corrupted))
            and all(0 <= at < length for at in pair.roles.values())
            and pair.roles["end"] == length - 1
            and len(pair.choices) == len(pair.correct)
        )
    except (AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(
            f"{path}, line {number}: not a prompt of a task (a field is missing or out of its range); "
            "delete the file and run snakemake again"
        )
    return pair


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
