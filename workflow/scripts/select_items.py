"""Select the test items that a judge is asked about, for all explained heads and the planted units.

Inputs: programs (explanations of the embedded explainer, to compare with, if there are any), head_stats.parquet (which
heads are explained), windows.parquet, the chunk folders with attention patterns, raw_events.parquet, the model folder
(tokenizer only).
Output: items.parquet, with what program and look-up predict at each item. Items come from test documents; the look-up
is fitted on train documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mechatlas.job import job
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.records import programs_of, read_explanations
from mechatlas.explain.selection import heads_to_explain
from mechatlas.io import progress, provenance, read_provenance, read_table, write_table
from mechatlas.score.judge.items import ItemSettings
from mechatlas.score.judge.selection import layer_items, planted_items


def main(
    programs: Sequence[str],
    head_stats: str,
    windows: str,
    chunks: Sequence[str],
    events: str,
    model: str,
    bos: str | None,
    max_heads: int,
    scorers: Sequence[str],
    sizes: Mapping[str, int],
    planted: int,
    active_attention: float,
    seed: int,
    test_items: str,
) -> None:
    """Go through the layers; the planted units come first."""
    data = HeadData(windows, chunks, model, bos)
    settings = ItemSettings(**sizes, seed=seed)
    known = programs_of(read_explanations(programs), "programs")
    heads = heads_to_explain(read_table(head_stats), max_heads)
    frames = []
    if planted:
        frames.append(planted_items(data, planted, scorers, settings, active_attention))
    for layer in progress(range(data.layers), desc="select items", unit="layer"):
        here = {head: known.get((at, head)) for at, head in heads if at == layer}
        if here:
            wanted = [("layer", "==", layer), ("split", "==", "test")]
            found = read_table(events, filters=wanted)
            more = layer_items(data, layer, here, found, scorers, settings, active_attention)
            frames.append(more)
    facts: dict[str, Any] = provenance(
        **data.facts,
        events=read_provenance(events),
        programs=[read_provenance(path) for path in programs],
        max_heads=max_heads,
        scorers=list(scorers),
        sizes=dict(sizes),
        planted=planted,
        active_attention=active_attention,
        seed=seed,
    )
    write_table(test_items, pd.concat(frames, ignore_index=True), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
