"""Run a model over one chunk of windows and keep what its heads do.

Input: ``windows`` (Parquet) and a model folder. Output: ``chunk``, a folder with index.json, head_stats.parquet,
events.layer_{l}.parquet, patterns.layer_{l}.safetensors and activations.{point}.layer_{l}.safetensors.
"""

from collections.abc import Sequence

from mechatlas.job import job
from mechatlas.capture.sweep import CaptureSettings, capture_chunk
from mechatlas.models.device import pick_device
from mechatlas.models.transformer import load


def main(
    windows: str,
    chunk: str,
    model: str,
    name: str,
    init: str,
    chunk_index: int,
    chunk_windows: int,
    batch_windows: int,
    candidates: int,
    max_per_document: int,
    quantiles: int,
    events_per_quantile: int,
    random_events: int,
    pattern_dtype: str,
    activations: Sequence[str],
    seed: int,
    device: str,
    dtype: str,
    gpu: int = 0,
) -> None:
    """Capture windows ``chunk_index * chunk_windows`` and following of the model ``name``."""
    transformer = load(model, device=pick_device(gpu, device), dtype=dtype, init=init, seed=seed)
    settings = CaptureSettings(
        max_per_document=max_per_document,
        candidates=candidates,
        # Twice what is drawn, so that each quantile has a choice.
        sample=max(1, 2 * quantiles * events_per_quantile),
        random_events=random_events,
        batch_windows=batch_windows,
        pattern_dtype=pattern_dtype,
        activations=tuple(activations),
        seed=seed,
    )
    first = chunk_index * chunk_windows
    facts = {"model": name, "model_hash": transformer.hash, "dtype": dtype}
    capture_chunk(
        transformer,
        windows,
        chunk,
        first=first,
        stop=first + chunk_windows,
        settings=settings,
        facts=facts,
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
