"""Summarise scores: bootstrap intervals, differences to controls, false discovery rate.

Inputs: document_scores.parquet, event_scores.parquet, head_losses.parquet, replacement_losses.parquet, the first two
of the random-weight control where that control is wanted.
Outputs: scores.parquet (one row per head, metric and control) and replacement.parquet (the replacement curve).
"""

from collections.abc import Sequence

from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.score.summary import SummarySettings, summarise, summarise_curve, with_control


def main(
    document_scores: str,
    event_scores: str,
    losses: str,
    curve_losses: str,
    control_document_scores: Sequence[str],
    control_event_scores: Sequence[str],
    bootstrap: int,
    confidence: float,
    fdr: float,
    min_events: int,
    seed: int,
    scores: str,
    curve: str,
) -> None:
    """Join the scores of the random-weight control and summarise."""
    settings = SummarySettings(bootstrap, confidence, fdr, min_events, seed)
    documents = with_control(read_table(document_scores), map(read_table, control_document_scores))
    events = with_control(read_table(event_scores), map(read_table, control_event_scores))
    facts = provenance(
        scored=read_provenance(document_scores),
        bootstrap=bootstrap,
        confidence=confidence,
        fdr=fdr,
        min_events=min_events,
        seed=seed,
    )
    write_table(scores, summarise(documents, events, read_table(losses), settings), facts)
    write_table(curve, summarise_curve(read_table(curve_losses), settings), facts)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
