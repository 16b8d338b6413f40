"""Ask a language model about the test items of every explanation of latents, and of the planted ones.

Inputs: items.parquet, explanations (one file for each explainer that is judged).
Outputs: judgements.parquet (one row per explanation, control, scorer and item), judge_usage.parquet (what that took).
Answers are kept in the store of ``llm`` as they come, so that a run that ends early goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.explain.latents.records import read_latent_explanations
from mechatlas.score.judge.planted_latents import planted_latent_records
from mechatlas.score.judge.run import judge_to_files


def main(
    test_items: str, explanations: Sequence[str], judge: Mapping[str, Any], **others: Any
) -> None:
    """Judge the planted units first; ``others`` are the remaining arguments of `judge_to_files`."""
    records = planted_latent_records(judge["planted"]) + read_latent_explanations(explanations)
    judge_to_files(records, test_items, explanations, judge=judge, label="judge latents", **others)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
