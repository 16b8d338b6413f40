"""Score explanations of latents on test documents, against controls, with intervals.

Inputs: explanations, windows.parquet, activations.parquet, raw_events.parquet, causal_losses.parquet and
promoted.parquet (if the causal checks were made), the model folder (tokenizer only).
Output: scores.parquet, one row per latent, explainer, metric and control.
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.records import read_latent_explanations
from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.score.latents.scoring import LatentScoring
from mechatlas.score.latents.summary import LatentSummarySettings


def main(
    explanations: Sequence[str],
    windows: str,
    activations: str,
    events: str,
    losses: Sequence[str],
    promoted: Sequence[str],
    model: str,
    bos: str | None,
    controls: Sequence[str],
    active_share: float,
    bootstrap: int,
    confidence: float,
    fdr: float,
    min_events: int,
    seed: int,
    scores: str,
) -> None:
    """Score latent by latent."""
    data = LatentData(windows, activations, model, bos)
    settings = LatentSummarySettings(bootstrap, confidence, fdr, min_events, seed)
    measures = {
        name: read_table(paths[0])
        for name, paths in (("losses", losses), ("promoted", promoted))
        if paths
    }
    test_events = read_table(events, filters=[("split", "==", "test")])
    records = read_latent_explanations(explanations)
    scoring = LatentScoring(data, records, test_events, measures, controls, active_share, settings)
    facts = provenance(
        **data.facts,
        explanations=[read_provenance(path) for path in explanations],
        **{"controls": list(controls), "active_share": active_share, "bootstrap": bootstrap},
        **{"confidence": confidence, "fdr": fdr, "min_events": min_events, "seed": seed},
    )
    write_table(scores, scoring.run(), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
