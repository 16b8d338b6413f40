"""Score the explanations of all heads on test documents.

Inputs: explanations/{explainer}.jsonl of every explainer, windows.parquet, the chunk folders with attention patterns,
raw_events.parquet, the model folder (tokenizer only).
Outputs: document_scores.parquet (sums per head, explainer, control and document) and event_scores.parquet (predictions
at events).
"""

from collections.abc import Sequence

import pandas as pd

from mechatlas.job import job
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.records import made_by, mean_patterns, read_explanations, variants_of
from mechatlas.io import progress, provenance, read_table, write_table
from mechatlas.score.heads import COLUMNS, predict_events, score_patterns


def main(
    explanations: Sequence[str],
    windows: str,
    chunks: Sequence[str],
    events: str,
    model: str,
    bos: str | None,
    controls: Sequence[str],
    active_attention: float,
    seed: int,
    document_scores: str,
    event_scores: str,
) -> None:
    """Score patterns layer by layer, then events window by window."""
    data = HeadData(windows, chunks, model, bos)
    records = read_explanations(explanations)
    variants = variants_of(records, controls, seed, mean_patterns(data))
    table = data.pattern_windows("test")
    rows = []
    for layer in progress(range(data.layers), desc="score layers", unit="layer"):
        patterns = data.sample("test", layer).patterns
        rows += score_patterns(layer, table, patterns, data.vocabulary, variants, active_attention)
    facts = provenance(
        **data.facts,
        explanations=made_by(explanations),
        controls=list(controls),
        active_attention=active_attention,
        seed=seed,
    )
    write_table(document_scores, pd.DataFrame(rows, columns=COLUMNS), facts)
    test = read_table(events, filters=[("split", "==", "test")])
    write_table(event_scores, predict_events(test, data.tokens, data.vocabulary, variants), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
