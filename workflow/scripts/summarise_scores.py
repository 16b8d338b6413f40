"""Summarise scores: bootstrap intervals, differences to controls, false discovery rate.

Inputs: explanations/{explainer}.jsonl of every explainer, document_scores.parquet, event_scores.parquet,
head_losses.parquet, replacement_losses.parquet; document_scores.parquet and event_scores.parquet of the random-weight
control where that control is wanted.
Outputs: scores.parquet (one row per head, explainer, metric and control) and replacement.parquet (the replacement
curves).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.explain.records import read_explanations
from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.score.curve import summarise_curve
from mechatlas.score.summary import SummarySettings, summarise, with_control


def main(
    explanations: Sequence[str],
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
    records = read_explanations(explanations)
    summary = summarise(documents, events, read_table(losses), settings, records)
    write_table(scores, summary, facts)
    write_table(curve, summarise_curve(read_table(curve_losses), settings), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
