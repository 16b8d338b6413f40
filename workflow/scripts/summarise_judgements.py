"""Summarise what a judge answered: scores with intervals, gains over program and look-up, controls, failures, spend.

Inputs: items.parquet, judgements.parquet, judge_usage.parquet.
Output: judge_scores.parquet (one row per unit, explainer, scorer, metric and control; planted units among them).
"""

from typing import Any

from mechatlas.job import job
from mechatlas.score.judge.run import summarise_to_file


def main(**arguments: Any) -> None:
    """Resample documents and write the table; the arguments are those of `summarise_to_file`."""
    summarise_to_file(**arguments)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
