"""Measure what the features of a cross-layer transcoder do on text, for its page.

Inputs: clt.safetensors, features.parquet, windows.parquet, the chunk folders, prompts of tasks (maybe), the model
folder. Outputs: activations.parquet (features over the tokens of single texts), text_map.parquet (texts in two
dimensions), correlations.parquet, virtual_weights.parquet, layer_weights.parquet.
"""

from collections.abc import Sequence

import numpy as np

from mechatlas.job import job
from mechatlas.corpus.windows import SPLITS, read_windows
from mechatlas.dictionaries import clt_description as describe
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.io import provenance, read_provenance, read_table, write_table
from mechatlas.models.transformer import load
from mechatlas.tasks.prompt_files import read_prompts

#: Texts of each task, and test windows, on the maps.
OF_TASK, OF_CORPUS = 24, 32
CORPUS = "test windows"


def main(
    clt: str,
    features: str,
    windows: str,
    chunks: Sequence[str],
    prompts: Sequence[str],
    model: str,
    tasks: Sequence[str],
    seed: int,
    dtype: str,
    activations: str,
    text_map: str,
    correlations: str,
    virtual_weights: str,
    layer_weights: str,
) -> None:
    """Measure on the CPU and write five tables."""
    transformer = load(model, dtype=dtype)
    loaded = load_clt(clt, dtype=transformer.dtype)
    table, known = read_windows(windows), read_table(features)
    test = np.flatnonzero(table.splits == SPLITS.index("test"))
    texts = {name: read_prompts(path) for name, path in zip(tasks, prompts, strict=True)}
    groups = {name: list(batch.clean[:OF_TASK]) for name, batch in texts.items()}
    groups[CORPUS] = list(table.tokens[test[:OF_CORPUS]])
    chosen = describe.most_important(known, describe.MEASURED)
    moments = describe.feature_moments(loaded, chunks, test, chosen)
    weights, by_layer = describe.weight_table(loaded, transformer, chosen, moments)
    listed, maps = describe.text_tables(transformer, loaded, groups, 1, seed)
    facts = provenance(
        clt=read_provenance(clt).get("clt"),
        model_hash=transformer.hash,
        windows=read_provenance(windows),
        tasks=list(tasks),
        seed=seed,
    )
    for path, found in (
        (activations, listed),
        (text_map, maps),
        (correlations, describe.correlation_table(moments, chosen, describe.SHOWN)),
        (virtual_weights, weights),
        (layer_weights, by_layer),
    ):
        write_table(path, found, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
