"""Join everything about the heads of one model into one table; compare what words say with what measurements show.

Inputs: summary.csv of every source; of every task (in the order of ``tasks``) roles, knocked-out nodes, patching, OV
and QK scores and the circuits; of every dictionary (in the order of ``dictionaries``) its weights and latents.parquet;
the model's weights if there is a dictionary; judge_scores.parquet of every source if there is a judge.
Outputs: cross_table.parquet (a row per head, source and explainer), written_latents.parquet (the latents that each head
writes to), agreement.json (agreement of words and causes with controls, and the heads where they disagree).
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from mechatlas.job import job
from mechatlas.io import provenance, read_table, write_json, write_table
from mechatlas.score import cross_table
from mechatlas.score.agreement import Draws


def main(
    summaries: Sequence[str],
    weights: Sequence[str],
    latent_tables: Sequence[str],
    model: str,
    name: str,
    sources: Sequence[str],
    tasks: Mapping[str, str],
    dictionaries: Sequence[Sequence[str]],
    thresholds: Mapping[str, float],
    draws: int,
    confidence: float,
    seed: int,
    table: str,
    written: str,
    agreement: str,
    judge_scores: Sequence[str] = (),
    **task_files: Sequence[str],
) -> None:
    """Write the three files; ``tasks`` maps tasks to their kinds, ``dictionaries`` are pairs of source and name."""
    found = cross_table.read_tasks(tasks, task_files)
    strongest = _strongest(model, weights, latent_tables, dictionaries)
    words = {s: pd.read_csv(path) for s, path in zip(sources, summaries, strict=True)}
    judged = (
        {s: read_table(p) for s, p in zip(sources, judge_scores, strict=True)}
        if judge_scores
        else {}
    )
    joined = cross_table.cross_table(words, found, strongest, judged)
    limits = cross_table.Thresholds(thresholds["attention"], thresholds["effect"])
    facts = provenance(model=name, seed=seed, draws=draws, confidence=confidence)
    write_table(table, joined, facts)
    write_table(written, cross_table.written_table(strongest), facts)
    options = (limits, Draws(draws, confidence), seed)
    record = {
        "thresholds": vars(limits),
        "draws": draws,
        "confidence": confidence,
        "agreement": cross_table.agreement(joined, found, *options),
        "disagreements": cross_table.disagreements(joined, found, limits),
    }
    write_json(agreement, record, facts)


def _strongest(
    model: str,
    weights: Sequence[str],
    tables: Sequence[str],
    names: Sequence[Sequence[str]],
) -> dict[str, pd.DataFrame]:
    if not weights:
        return {}
    # Only here, as it costs seconds that a model without a dictionary need not spend.
    from mechatlas.models.transformer import load
    from mechatlas.score.written_latents import strongest_latents

    loaded = load(model)
    return {
        "/".join(place): strongest_latents(loaded, folder, read_table(table))
        for place, folder, table in zip(names, weights, tables, strict=True)
    }


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
