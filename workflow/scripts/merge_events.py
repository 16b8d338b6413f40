"""Bring the chunks' candidate events together.

Input: ``windows`` (Parquet), ``chunks`` (folders of capture_heads). Output: ``events`` (raw_events.parquet: layer,
head, window, doc, split, query, key, attention, write_norm, role, anchor_query, anchor_key, quantile, weight) and, if
asked for, ``stats`` (head_stats.parquet: layer, head, split, rows, attention_bos, attention_self, write_norm).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.capture.merge import merge_events, merge_statistics


def main(
    windows: str,
    chunks: Sequence[str],
    events: str,
    topk: int,
    max_per_document: int,
    quantiles: int,
    events_per_quantile: int,
    seed: int,
    random_events: int | None = None,
    stats: str | None = None,
) -> None:
    """Select the events of all heads; ``random_events`` was decided by capture and only triggers reruns."""
    merge_events(
        chunks,
        windows,
        events,
        topk=topk,
        max_per_document=max_per_document,
        quantiles=quantiles,
        events_per_quantile=events_per_quantile,
        seed=seed,
    )
    if stats:
        merge_statistics(chunks, stats)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
