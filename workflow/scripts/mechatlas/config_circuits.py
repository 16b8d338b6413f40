"""Checks of what a configuration says about tasks and circuits that take more than one key or a file.

Cheap enough for every parse of the Snakefile, like `mechatlas.config_files`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.config_files import find_path
from mechatlas.io import UserError
from mechatlas.models.config import read_config


def check_circuits(config: Mapping[str, Any], workdir: Path, repository: Path) -> Iterator[str]:
    """Yield what is wrong: missing or damaged files, scores that are not computed, nodes that do not exist.

    Entries for models that are not in the table are allowed, as the models of the default may be left out.
    """
    models, tasks, circuits = config["models"], config["tasks"], config["circuits"]
    for name, entry in circuits["extra"].items():
        key = f"circuits.extra.{name}"
        if name in tasks:
            yield f"{key}: a task has this name, too; choose another one"
        yield from _check_circuit(f"{key}.file", find_path(entry["file"], workdir, repository))
    for name, entry in circuits["published"].items():
        yield from _check_file(
            f"circuits.published.{name}.file", find_path(entry["file"], workdir, repository)
        )
    for name in circuits["generation"]["questions"]:
        if name in tasks:
            yield f"circuits.generation.questions.{name}: a task has this name, too; choose another one"
    for file in circuits["generation"]["files"]:
        yield from _check_file("circuits.generation.files", find_path(file, workdir, repository))
    yield from _check_ranking(circuits["edges"])
    yield from _check_kept(
        "circuits.nodes.keep", circuits["nodes"]["keep"], models, workdir, repository
    )
    for name, task in tasks.items():
        mine = {k: v for k, v in models.items() if task["models"] is None or k in task["models"]}
        yield from _check_kept(f"tasks.{name}.keep", task["keep"] or (), mine, workdir, repository)


def _check_file(key: str, path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"{key}: {str(path)!r} is no file; correct the path"


def _check_circuit(key: str, path: Path) -> Iterator[str]:
    if not path.is_file():
        yield from _check_file(key, path)
        return
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raw = None
    if not isinstance(raw, dict) or not all(
        isinstance(raw.get(k), list) for k in ("heads", "mlps")
    ):
        yield f"{key}: {path} is no circuit; it needs the lists heads ([[layer, head], ...]) and mlps ([layer, ...])"


def _check_ranking(edges: Mapping[str, Any]) -> Iterator[str]:
    computed = [*edges["methods"], *(["exact"] if edges["exact_prompts"] else [])]
    if edges["rank_by"] not in computed:
        yield (
            f"circuits.edges.rank_by: {edges['rank_by']!r} is not computed; add it to circuits.edges.methods "
            f"(for exact: circuits.edges.exact_prompts above 0), or choose from {', '.join(computed)}"
        )


def _check_kept(
    key: str, keep: Sequence[str], models: Mapping[str, Any], workdir: Path, repository: Path
) -> Iterator[str]:
    for name, model in models.items():
        if not keep or "path" not in model:
            continue
        try:
            shape = read_config(find_path(model["path"], workdir, repository))
        except UserError:
            continue  # said by the check of the model
        for node in keep:
            layer, head = re.fullmatch(r"L(\d+)\.(?:H(\d+)|mlp)", node).groups()
            if int(layer) >= shape.n_layers or int(head or 0) >= shape.n_heads:
                yield (
                    f"{key}: {name} has no {node}, only {shape.n_layers} layers of {shape.n_heads} heads "
                    "(counted from 0); correct it, or leave the model out"
                )
