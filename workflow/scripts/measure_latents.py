"""Run the model without latents, on what programs predict of them, and steered by them.

Inputs: explanations, windows.parquet, activations.parquet, the folder of dictionaries, the model folder.
Outputs: causal_losses.parquet, steering.parquet, promoted.parquet (which tokens follow where a latent is said to be
active, by how much steering promotes them), promoted_tokens.parquet (what a latent promotes and suppresses).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.dictionaries.collection import layers_of, read_dictionary
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.records import read_latent_explanations
from mechatlas.io import progress, provenance, read_provenance, write_table
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load
from mechatlas.score.latents.measure import MeasureSettings, concatenated, measure_layer
from mechatlas.score.latents.scoring import variants_of


def main(
    explanations: Sequence[str],
    windows: str,
    activations: str,
    weights: str,
    model: str,
    bos: str | None,
    controls: Sequence[str],
    sizes: Mapping[str, Any],
    seed: int,
    device: str,
    dtype: str,
    gpu: int,
    losses: str,
    steering: str,
    promoted: str,
    promoted_tokens: str,
) -> None:
    """Go through the layers."""
    data = LatentData(windows, activations, model, bos)
    place = pick_device(gpu, device)
    transformer = load(model, device=place, dtype=dtype)
    programs = variants_of(read_latent_explanations(explanations), controls, seed)
    settings = MeasureSettings(**sizes, seed=seed)
    parts = []
    for layer in progress(layers_of(weights), desc="measure", unit="layers"):
        sae = read_dictionary(
            weights, layer, config=transformer.config, device=place, dtype=transformer.dtype
        )
        parts.append(measure_layer(transformer, sae, data, layer, programs, settings))
    tables = concatenated(parts)
    facts = provenance(
        **data.facts,
        explanations=[read_provenance(path) for path in explanations],
        model_hash=transformer.hash,
        **sizes,
        seed=seed,
    )
    paths = {
        "losses": losses,
        "steering": steering,
        "promoted": promoted,
        "tokens": promoted_tokens,
    }
    for name, path in paths.items():
        write_table(path, tables[name], facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
