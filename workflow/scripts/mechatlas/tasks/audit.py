"""The audit of a task's prompts: what was accepted, what the model does, whether corruptions leak the answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechatlas.io import UserError
from mechatlas.tasks.answers import EndScores
from mechatlas.tasks.collect import Tally
from mechatlas.tasks.pairs import SPLITS, PairBatch

logger = logging.getLogger(__name__)

GUESSING = 0.6
COLUMNS = {
    "split": "split",
    "group": "group",
    "prompts": "prompts",
    "candidates": "candidates",
    "acceptance": "accepted",
    "accuracy": "right",
    "top1": "top-1",
    "clean_difference": "LD clean",
    "corrupted_difference": "LD corr.",
    "clean_probability": "PD clean",
    "corrupted_probability": "PD corr.",
    "leaks": "leaks",
    "repeated_fillers": "repeats",
}
"""Columns of the table and their headings."""


def find_leaks(batch: PairBatch) -> np.ndarray:
    """Return which corrupted prompts [N] (bool) give the clean answer away.

    They do if the clean answer is right after them, if they show it although the clean prompt does not, or if they are
    the clean prompt.
    """
    answers = batch.answers[:, None]
    shown_anew = (batch.corrupted == answers).any(1) & ~(batch.clean == answers).any(1)
    same = (batch.corrupted == batch.clean).all(axis=1)
    return shown_anew | same | (batch.corrupted_answers == batch.answers)


def audit(
    batch: PairBatch,
    clean: EndScores,
    corrupted: EndScores,
    tallies: Mapping[tuple[str, str], Tally],
) -> list[dict[str, Any]]:
    """Return the audit table: one row for each family in each split, and one for each split.

    Parameters
    ----------
    batch : PairBatch
    clean, corrupted : EndScores
        What the model says on its clean and on its corrupted prompts.
    tallies : mapping
        From `mechatlas.tasks.collect.Collected`.

    Returns
    -------
    list of dict
        Rows with the keys of `COLUMNS`, where LD is the mean logit difference and PD the mean probability of the right
        answers minus that of the wrong ones, ``acceptance`` the share of new candidates that passed the filter (null
        where none were looked at), ``accuracy`` that of prompts in which the answer is likelier than the wrong one.
    """
    splits, groups = np.array(batch.split), np.array(batch.groups)
    leaks = find_leaks(batch)
    repeats = np.array([len(set(words)) < len(words) for words in batch.fillers], dtype=bool)
    numbers = {
        "accuracy": clean.answer > clean.wrong,
        "top1": clean.top1,
        "clean_difference": clean.logit_difference,
        "corrupted_difference": corrupted.logit_difference,
        "clean_probability": clean.answer - clean.wrong,
        "corrupted_probability": corrupted.answer - corrupted.wrong,
    }
    rows = []
    for split in [name for name in SPLITS if (splits == name).any()]:
        for group in ["all", *sorted(set(groups[splits == split]))]:
            chosen = (splits == split) & ((groups == group) | (group == "all"))
            counted = [t for (s, g), t in tallies.items() if s == split and group in ("all", g)]
            rows.append(
                {
                    "split": split,
                    "group": group,
                    "prompts": int(chosen.sum()),
                    **_acceptance(counted),
                    **{name: float(values[chosen].mean()) for name, values in numbers.items()},
                    "leaks": int(leaks[chosen].sum()),
                    "repeated_fillers": int(repeats[chosen].sum()),
                }
            )
    return rows


def check_scores(batch: PairBatch, clean: EndScores, corrupted: EndScores) -> None:
    """Check that the model does the task and that the corruption takes effect.

    Effects are shares of the distance between the clean and the corrupted logit difference (for tasks with choices:
    the probability difference), so in each split the clean mean has to be positive, and above the corrupted one by
    more than two standard errors of the paired difference.

    Raises
    ------
    UserError
        If it is not.
    """
    what = "logit difference" if batch.choices is None else "probability difference"
    one, two = (
        s.logit_difference if batch.choices is None else s.answer - s.wrong
        for s in (clean, corrupted)
    )
    for split in dict.fromkeys(batch.split):
        chosen = np.array(batch.split) == split
        mean, other, drop = one[chosen].mean(), two[chosen].mean(), (one - two)[chosen]
        if mean <= 0:
            raise UserError(
                f"task {batch.task}: the mean clean {what} is {mean:.3f} on {split} prompts, so the model does not do "
                f"the task; set tasks.{batch.task}.filter to above_wrong or top1, or leave it out ({batch.task}: null)"
            )
        error = drop.std(ddof=1) / np.sqrt(len(drop)) if len(drop) > 1 else 0.0
        if drop.mean() <= 2 * error:
            raise UserError(
                f"task {batch.task}: the mean {what} is {mean:.3f} on clean and {other:.3f} on corrupted {split} "
                "prompts, so the corruption takes nothing away beyond chance; choose another corruption or more "
                f"prompts, or leave the task out ({batch.task}: null)"
            )


def warn_of_guessing(task: str, rule: str, rows: list[dict[str, Any]]) -> None:
    """Warn where no more candidates passed the filter than guessing between two answers would let through."""
    for row in rows:
        rate = row["acceptance"]
        if rule == "above_wrong" and row["group"] == "all" and rate is not None and rate < GUESSING:
            logger.warning(
                "task %s: only %.0f %% of the %s candidates passed filter: %s, which guessing does as well; what is "
                "found on these prompts may be luck",
                *(task, 100 * rate, row["split"], rule),
            )


def audit_text(rows: list[dict[str, Any]]) -> str:
    """Return the audit as a table in plain text."""
    cells = [list(COLUMNS.values()), *([_shown(row[key]) for key in COLUMNS] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _acceptance(tallies: list[Tally]) -> dict[str, Any]:
    candidates = sum(tally.candidates for tally in tallies)
    new = candidates - sum(tally.repeated for tally in tallies)
    accepted = sum(tally.accepted for tally in tallies)
    return {"candidates": candidates, "acceptance": accepted / new if new else None}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
