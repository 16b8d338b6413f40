"""Run the model with the attention of heads replaced by what their programs predict.

Inputs: explanations/{explainer}.jsonl of every explainer, windows.parquet, the chunk folders (train patterns,
for the mean pattern), the model folder.
Outputs: head_losses.parquet (one head replaced at a time), replacement_losses.parquet (growing shares of heads), both
per test document.
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.explain.dataset import HeadData
from mechatlas.explain.records import made_by, mean_patterns, read_explanations, variants_of
from mechatlas.io import provenance, write_table
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load
from mechatlas.score.replacement import Replacer, curves, head_table


def main(
    explanations: Sequence[str],
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
    programmed = {head for programs in variants.values() for head in programs}
    table = data.pattern_windows("test").iloc[:causal_windows]
    network = load(model, device=pick_device(gpu, device), dtype=dtype)
    replacer = Replacer(
        network,
        data.tokens(table["window"].to_numpy()),
        data.vocabulary,
        {head: mean for head, mean in means.items() if head in programmed},
        batch_windows,
    )
    facts = provenance(
        **data.facts,
        explanations=made_by(explanations),
        model_hash=network.hash,
        controls=list(controls),
        dtype=dtype,
        seed=seed,
    )
    documents = table["doc"].to_numpy()
    write_table(losses, head_table(replacer.single_heads(variants), documents, replacer), facts)
    curve = curves(replacer, records, documents, shares, random_orders, seed, len(means))
    write_table(curve_losses, curve, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
