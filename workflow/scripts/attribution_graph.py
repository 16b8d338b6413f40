"""Make the attribution graph of one prompt, check it by interventions, and draw its page.

Inputs: clt.safetensors, features.parquet, examples.parquet, explanations.jsonl of features (maybe), windows.parquet,
prompts.jsonl, the model folder. Outputs:
graph.safetensors (every node and edge), graph.json (the public schema, pruned), consistency.parquet (predicted against
measured changes), summary.json, graph.html (one page).
"""

from collections.abc import Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.graphs.graph import save_graph
from mechatlas.circuits.graphs.prompt_graph import (
    explained_nodes,
    fact_lines,
    feature_details,
    make_prompt_graph,
)
from mechatlas.circuits.graphs.public_json import to_public
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.figures.graph_viewer import viewer_page
from mechatlas.io import provenance, write_json, write_table, write_text
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load


def main(
    clt: str,
    features: str,
    examples: str,
    explanations: Sequence[str],
    windows: str,
    prompts: str,
    model: str,
    about: dict[str, str],
    settings: dict[str, Any],
    dtype: str,
    graph: str,
    public: str,
    consistency: str,
    summary: str,
    page: str,
    bos: str | None = None,
) -> None:
    """Make everything about the prompt ``about["graph"]`` on the CPU."""
    transformer, tokenizer = load(model, dtype=dtype), load_tokenizer(model, bos)
    loaded = load_clt(clt, dtype=transformer.dtype)
    made = make_prompt_graph(transformer, loaded, tokenizer, prompts, **settings)
    details = feature_details(
        made, transformer, loaded, tokenizer, features=features, examples=examples, windows=windows
    )
    facts = provenance(**about, model_hash=transformer.hash, settings=settings, dtype=dtype)
    shared: dict[str, Any] = {
        "slug": about["graph"],
        "supernodes": made.supernodes,
        "labels": explained_nodes(made.graph, explanations),
        "vocabulary": made.vocabulary,
    }
    save_graph(graph, made.graph, facts)
    threshold = settings["node_threshold"]
    value = to_public(
        made.graph,
        made.pruned,
        made.texts,
        scan=about["transcoder"],
        node_threshold=threshold,
        **shared,
    )
    write_json(public, value, facts)
    write_table(consistency, made.consistency, facts)
    write_json(summary, made.summary(), facts)
    title = f"{about['graph']}: attribution graph of {about['model']}"
    html = viewer_page(
        made.graph,
        made.pruned,
        made.texts,
        title=title,
        share=threshold,
        details=details,
        facts=fact_lines(made, about),
        **shared,
    )
    write_text(page, html, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
