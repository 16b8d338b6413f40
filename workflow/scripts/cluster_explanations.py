"""Group the heads of a model by what their explanations say.

Input: explanations.jsonl (controls are left out). Output: clusters.json (settings, clusters with label, medoid and
units, noise).
"""

from mechatlas.explain.clusters import cluster_explanations
from mechatlas.io import provenance, read_jsonl, read_provenance, write_json


def main(
    explanations: str, min_cluster_size: int, embedding_model: str, seed: int, clusters: str
) -> None:
    """Embed, cluster and write; nothing is drawn at random, ``seed`` is recorded only."""
    result = cluster_explanations(read_jsonl(explanations), min_cluster_size, embedding_model)
    facts = provenance(
        explanations=read_provenance(explanations),
        **result["settings"],
        embedding_model=result["embedding_model"],
        seed=seed,
    )
    write_json(clusters, result, facts)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments)
