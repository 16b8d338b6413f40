"""Ask a language model about the test items of every explanation, and of the planted units.

Inputs: items.parquet, explanations (one file for each explainer that is judged).
Outputs: judgements.parquet (one row per explanation, control, scorer and item), judge_usage.parquet (what that took).
Answers are kept in the store of ``llm`` as they come, so that a run that ends early goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.settings import llm_settings_from
from mechatlas.explain.records import read_explanations
from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.score.judge.judging import (
    judgement_table,
    subjects_of,
    tasks_of,
    usage_table,
    work_of,
)
from mechatlas.score.judge.planted import planted_records
from mechatlas.score.judge.prompts import PROMPT_VERSION
from mechatlas.score.judge.scorers import judge_settings


def main(
    test_items: str,
    explanations: Sequence[str],
    judge: Mapping[str, Any],
    judge_at: Mapping[str, Any],
    llm: Mapping[str, Any],
    seed: int,
    judgements: str,
    usage: str,
) -> None:
    """Judge the planted units first; units without an explanation are not asked about."""
    settings = judge_settings({**judge, **judge_at}, seed)
    records = planted_records(judge["planted"]) + read_explanations(explanations)
    tasks = tasks_of(read_table(test_items), subjects_of(records, judge["controls"], seed))
    asked = [place for place, task in enumerate(tasks) if task.subject.text]
    works = (work_of(tasks[place], settings) for place in asked)
    answers = run_units(llm_settings_from(llm), works, "judge heads", total=len(asked))
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


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
