"""Judging and its summary from files to files, the same for heads and latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.settings import llm_settings_from
from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.score.judge.judging import (
    judgement_table,
    subjects_of,
    tasks_of,
    usage_table,
    work_of,
)
from mechatlas.score.judge.prompts import PROMPT_VERSION
from mechatlas.score.judge.scorers import judge_settings
from mechatlas.score.judge.summary import JudgeSummarySettings, summarise_judgements


def judge_to_files(
    records: Sequence[Mapping[str, Any]],
    test_items: str | Path,
    explanations: Sequence[str | Path],
    *,
    judge: Mapping[str, Any],
    judge_at: Mapping[str, Any],
    llm: Mapping[str, Any],
    seed: int,
    label: str,
    judgements: str | Path,
    usage: str | Path,
) -> None:
    """Ask a judge about the test items of explanations and write what it answered and what that took.

    Parameters
    ----------
    records : sequence of mappings
        Planted units, then the records of ``explanations``; units without an explanation are not asked about.
    test_items : path
    explanations : sequence of paths
        For the provenance.
    judge, judge_at, llm : mappings
        Config: the judge, where it is reached, and how language models are asked.
    seed : int
    label : str
        What the progress line says.
    judgements, usage : path

    Raises
    ------
    UserError
        If files are missing or damaged, or the judge cannot be asked.
    """
    settings = judge_settings({**judge, **judge_at}, seed)
    tasks = tasks_of(read_table(test_items), subjects_of(records, judge["controls"], seed))
    asked = [place for place, task in enumerate(tasks) if task.subject.text]
    works = (work_of(tasks[place], settings) for place in asked)
    answers = run_units(llm_settings_from(llm), works, label, total=len(asked))
    judged = dict(zip(asked, answers, strict=True))
    facts = provenance(
        items=read_provenance(test_items),
        explanations=[read_provenance(path) for path in explanations],
        judge={key: judge[key] for key in ("provider", "model", "temperature")},
        prompt_version=PROMPT_VERSION,
        seed=seed,
    )
    write_table(judgements, judgement_table(tasks, judged), facts)
    write_table(usage, usage_table(tasks, judged), facts)


def summarise_to_file(
    test_items: str | Path,
    judgements: str | Path,
    usage: str | Path,
    scores: str | Path,
    *,
    bootstrap: int,
    confidence: float,
    fdr: float,
    seed: int,
    **least: float,
) -> None:
    """Summarise what a judge answered and write the table of scores.

    ``least`` is one number under the name that it has for the units at hand (``active_attention``, ``active_share``):
    from where on a place counts as active.
    """
    (active,) = least.values()
    settings = JudgeSummarySettings(bootstrap, confidence, fdr, active, seed)
    table = summarise_judgements(
        read_table(test_items), read_table(judgements), read_table(usage), settings
    )
    options = {"bootstrap": bootstrap, "confidence": confidence, "fdr": fdr, **least, "seed": seed}
    facts = provenance(judged=read_provenance(judgements), **options)
    write_table(scores, table, facts)
