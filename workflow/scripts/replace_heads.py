"""Run the model with the attention of heads replaced by what their programs predict.

Inputs: explanations.jsonl, windows.parquet, the chunk folders (train patterns, for the mean pattern), the model folder.
Outputs: head_losses.parquet (one head replaced at a time), replacement_losses.parquet (growing shares of heads), both
per test document.
"""

from collections.abc import Sequence

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.records import mean_patterns, read_explanations, variants_of
from mechatlas.io import provenance, read_provenance, write_table
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load
from mechatlas.score.replacement import (
    Replacer,
    curve_groups,
    curve_table,
    head_table,
    rank_heads,
)


def main(
    explanations: str,
    windows: str,
    chunks: Sequence[str],
    model: str,
    bos: str | None,
    controls: Sequence[str],
    causal_windows: int,
    shares: Sequence[float],
    random_orders: int,
    batch_windows: int,
    seed: int,
    device: str,
    dtype: str,
    gpu: int,
    losses: str,
    curve_losses: str,
) -> None:
    """Measure both tables on the first ``causal_windows`` test windows of the pattern sample."""
    data = HeadData(windows, chunks, model, bos)
    records = read_explanations(explanations)
    means = mean_patterns(data)
    variants = variants_of(records, controls, seed, means)
    table = data.pattern_windows("test").iloc[:causal_windows]
    network = load(model, device=pick_device(gpu, device), dtype=dtype)
    replacer = Replacer(
        network,
        data.tokens(table["window"].to_numpy()),
        data.vocabulary,
        means,
        batch_windows,
    )
    facts = provenance(
        **data.facts,
        explanations=read_provenance(explanations),
        model_hash=network.hash,
        controls=list(controls),
        dtype=dtype,
        seed=seed,
    )
    documents = table["doc"].to_numpy()
    write_table(losses, head_table(replacer.single_heads(variants), documents, replacer), facts)
    groups = curve_groups(rank_heads(records), shares, random_orders, seed)
    result = replacer.groups(variants["none"], groups)
    write_table(curve_losses, curve_table(result, groups, documents, replacer), facts)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
