"""Group the heads of a model by what their explanations say.

Input: explanations/{explainer}.jsonl of every explainer (controls and heads that were not explained are left out).
Output: clusters.json (settings, clusters with label, medoid and units, noise).
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.explain.clusters import cluster_explanations
from mechatlas.explain.records import made_by
from mechatlas.io import provenance, read_jsonl, write_json


def main(
    explanations: Sequence[str],
    min_cluster_size: int,
    embedding_model: str,
    seed: int,
    clusters: str,
) -> None:
    """Embed, cluster and write; nothing is drawn at random, ``seed`` is recorded only."""
    records = [record for path in explanations for record in read_jsonl(path)]
    result = cluster_explanations(records, min_cluster_size, embedding_model)
    facts = provenance(
        explanations=made_by(explanations),
        **result["settings"],
        embedding_model=result["embedding_model"],
        seed=seed,
    )
    write_json(clusters, result, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
