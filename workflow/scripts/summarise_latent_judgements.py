"""Summarise what a judge answered about latents: scores with intervals, gains, controls, failures, spend.

Inputs: items.parquet, judgements.parquet, judge_usage.parquet.
Output: judge_scores.parquet (one row per unit, explainer, scorer, metric and control; planted units among them).
"""

from mechatlas.job import job
from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.score.judge.summary import JudgeSummarySettings, summarise_judgements


def main(
    test_items: str,
    judgements: str,
    usage: str,
    bootstrap: int,
    confidence: float,
    fdr: float,
    active_share: float,
    seed: int,
    scores: str,
) -> None:
    """Resample documents and write the table."""
    settings = JudgeSummarySettings(bootstrap, confidence, fdr, active_share, seed)
    table = summarise_judgements(
        read_table(test_items), read_table(judgements), read_table(usage), settings
    )
    facts = provenance(
        judged=read_provenance(judgements),
        bootstrap=bootstrap,
        confidence=confidence,
        fdr=fdr,
        active_share=active_share,
        seed=seed,
    )
    write_table(scores, table, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
