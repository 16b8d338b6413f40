"""Trace a set of prompts of a task through a transcoder: scores, mean graph, features, and what the models write on.

Inputs: clt.safetensors, prompts.jsonl, the model folder. Outputs: scores.parquet (a row per prompt and measure, and the
means), edges.parquet (mean edges with intervals over prompts), features.parquet (mean influence), generation.parquet
(continuations by the model, the replacement model, and the model without its most influential features).
"""

from typing import Any

from mechatlas.job import job
from mechatlas.circuits.graphs.prompt_set import make_prompt_set
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.io import provenance, read_provenance, write_table
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load


def main(
    clt: str,
    prompts: str,
    model: str,
    about: dict[str, str],
    settings: dict[str, Any],
    seed: int,
    dtype: str,
    scores: str,
    edges: str,
    features: str,
    generation: str,
    bos: str | None = None,
) -> None:
    """Trace on the CPU and write the four tables."""
    transformer, tokenizer = load(model, dtype=dtype), load_tokenizer(model, bos)
    loaded = load_clt(clt, dtype=transformer.dtype)
    made = make_prompt_set(transformer, loaded, tokenizer, prompts, **settings, seed=seed)
    facts = provenance(
        **about,
        **{"model_hash": transformer.hash, "settings": settings, "seed": seed, "dtype": dtype},
        clt=read_provenance(clt).get("clt"),
        made_from=read_provenance(prompts),
    )
    paths = {"scores": scores, "edges": edges, "features": features, "generation": generation}
    for name, path in paths.items():
        write_table(path, getattr(made, name), facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
