"""How many jobs a configuration spreads one piece of work over; cheap, as it runs with every parse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mechatlas.costs.shapes import Shape, shape_of
from mechatlas.io.errors import UserError
from mechatlas.spread import batch_names

DOWNLOADS = "resources/downloads/models"
#: What spreads work over jobs whose number depends on the size of the model; 0 means one job.
KEYS = ("explain.units_per_job", "circuits.layers_per_job", "circuits.parts_per_job")
READERS = 3  # inputs of a head: query, key, value


def head_batches(shape: Shape, per_job: int) -> list[str]:
    """Return the names of the jobs in which a model's heads are explained, none if one job does everything.

    A job has whole layers, whose heads are fitted together: the last digits of a fit depend on which ones are.
    """
    return batch_names(shape.layers, per_job and max(1, per_job // shape.heads))


def latent_batches(shape: Shape, entry: Mapping[str, Any], most: int, per_job: int) -> list[str]:
    """Return the names of the jobs in which latents are explained, at most ``most`` of a layer of a dictionary."""
    layers = shape.layers if entry.get("layers") is None else len(entry["layers"])
    return batch_names(layers * most, per_job)


def edge_batches(shape: Shape, edges: Mapping[str, Any], per_job: int) -> list[str]:
    """Return the names of the jobs that share what is independent in tracing edges, none if one job does everything.

    There are as many parts at most as here (`mechatlas.circuits.edge_parts`): a node into which paths are patched has
    the inputs of a head, or one if it turns out to be an MLP.
    """
    parts = edges["acdc_orders"] + 2 * len(edges["methods"])
    if edges["rank_by"] != "exact":
        parts += 2 + READERS * edges["path_receivers"]
    if edges["exact_prompts"]:
        parts += shape.layers
    return batch_names(parts, per_job)


def half_batches(nodes: Mapping[str, Any], per_job: int) -> list[str]:
    """Return the names of the jobs in which nodes are pruned on halves of the prompts."""
    return batch_names(nodes["stability_samples"], per_job)


def check_spread(config: Mapping[str, Any], workdir: Path) -> Iterator[str]:
    """Yield the models whose size, and with it the number of jobs, is not known before they are downloaded."""
    wanted = {key: _value(config, key) for key in KEYS if _value(config, key)}
    for name, model in config["models"].items():
        if not wanted or "hub" not in model:
            continue
        folder = f"{DOWNLOADS}/{name}"
        try:
            shape_of(name, model, workdir / folder)
        except UserError:
            key, value = next(iter(wanted.items()))
            yield (
                f"{key}: {value} needs the size of models.{name} ({model['hub']}), which is not known before it is "
                f"here; fetch it first: snakemake --cores 1 {folder} --config {_without(wanted)}"
            )


def _without(keys: Iterable[str]) -> str:
    """Return options without these keys: the download has to be planned without what it is needed for."""
    sections: dict[str, list[str]] = {}
    for section, name in (key.split(".") for key in keys):
        sections.setdefault(section, []).append(f"{name}: 0")
    # Snakemake takes the last of several values of one section.
    return " ".join(f"'{section}={{{', '.join(off)}}}'" for section, off in sections.items())


def _value(config: Mapping[str, Any], key: str) -> int:
    section, name = key.split(".")
    return config[section][name]
