"""Train one transcoder of a sweep and measure it.

Inputs: windows.parquet, the chunk folders, prompts.jsonl of the sweep's task (maybe), the model folder. Outputs:
clt.safetensors, training.parquet, evaluation.parquet (a row per measure). A killed job goes on from its checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.job import job
from mechatlas.circuits.graphs.sweep import measure_point
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.dictionaries.clt_settings import CltSettings
from mechatlas.dictionaries.clt_training import train_to_files
from mechatlas.io import provenance, write_table
from mechatlas.models.device import pick_device
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load

CHECKPOINT_EVERY = 1000


def main(
    windows: str,
    chunks: Sequence[str],
    prompts: Sequence[str],
    model: str,
    about: Mapping[str, str],
    settings: Mapping[str, Any],
    checkpoint: str,
    sizes: Mapping[str, Any],
    device: str,
    dtype: str,
    clt: str,
    training: str,
    evaluation: str,
    bos: str | None = None,
    gpu: int = 0,
) -> None:
    """Train on the windows of train documents, measure on those of test documents and on held-out prompts."""
    place, wanted = pick_device(gpu, device), CltSettings(**settings)
    named = {name: about[name] for name in ("model", "source", "sweep")}
    train_to_files(
        windows,
        chunks,
        wanted,
        about=named,
        checkpoint=checkpoint,
        checkpoint_every=CHECKPOINT_EVERY,
        device=place,
        clt=clt,
        training=training,
    )
    # Graphs are made on the CPU.
    transformer = load(model, dtype=dtype)
    loaded = load_clt(clt, dtype=transformer.dtype)
    task = prompts[0] if prompts else None
    tokenizer = load_tokenizer(model, bos)
    table = measure_point(loaded, transformer, tokenizer, windows, chunks, task, **sizes)
    point = {"decoders": wanted.decoders, "value": float(about["value"]), "seed": wanted.seed}
    facts = provenance(
        **named, **point, features=wanted.features, settings=dict(settings), sizes=dict(sizes)
    )
    write_table(evaluation, table, facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
