"""Checks of the files that a configuration names, cheap enough for every parse of the Snakefile."""

from __future__ import annotations

import glob
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechatlas.corpus import stackexchange, wikitext
from mechatlas.dictionaries.published import check_published
from mechatlas.io import UserError
from mechatlas.models.config import read_config

LFS_POINTER = b"version https://git-lfs"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))


def find_path(path: str, workdir: Path, repository: Path) -> Path:
    """Return where a path of the configuration leads: working directory first, then the repository."""
    inside = workdir / path
    return inside if inside.exists() or not (repository / path).exists() else repository / path


def source_files(patterns: Sequence[str], workdir: Path, repository: Path) -> list[Path]:
    """Return the files that match any of the globs, sorted, each once."""
    found: set[Path] = set()
    for pattern in patterns:
        for root in (workdir, repository):
            matches = [Path(p) for p in glob.glob(str(root / pattern), recursive=True)]
            matches = [p for p in matches if p.is_file()]
            if matches:
                found.update(matches)
                break
    return sorted(found)


def check_source(
    key: str, source: Mapping[str, Any], workdir: Path, repository: Path
) -> Iterator[str]:
    """Yield what is wrong with the files of a source: none that match, of another kind, or a folder without any."""
    for pattern in source.get("files", ()):
        files = source_files([pattern], workdir, repository)
        if not files:
            yield (
                f"{key}.files: {pattern!r} matches no file in {workdir} or {repository}; "
                "correct the pattern or add the files"
            )
        strange = [f for f in files if f.suffix not in wikitext.SUFFIXES]
        if strange and source["kind"] == "wikitext":
            yield (
                f"{key}.files: {strange[0]} is no WikiText file; use {', '.join(wikitext.SUFFIXES)}, "
                "or read other text with kind: text"
            )
    if source["kind"] == "stackexchange":
        yield from _check_dump(key, find_path(source["folder"], workdir, repository))


def _check_dump(key: str, folder: Path) -> Iterator[str]:
    way_out = (
        f"give the output folder of stackexchange-dataset, or leave the source out ({key}: null)"
    )
    if not folder.is_dir():
        yield f"{key}.folder: the folder {folder} does not exist; {way_out}"
    elif not stackexchange.dump_files(folder):
        inside = folder / "out"
        if inside.is_dir() and stackexchange.dump_files(inside):
            way_out = f"did you mean {inside}?"
        kinds = ", ".join(stackexchange.SUFFIXES)
        yield f"{key}.folder: {folder} holds no {kinds} file; {way_out}"


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder on which results depend, sorted."""
    names = {"config.json", *(name for group in TOKENIZERS for name in group)}
    names.update(("tokenizer_config.json", "special_tokens_map.json"))
    files = [p for p in folder.iterdir() if p.name in names or p.suffix == ".safetensors"]
    return sorted(files)


def check_model(key: str, folder: Path, window_len: int) -> Iterator[str]:
    """Yield what is wrong with a local model folder: missing, incomplete, damaged, or too short a context."""
    if not folder.is_dir():
        yield f"{key}: the folder {folder} does not exist; correct the path or put the model there"
        return
    yield from _check_model_config(key, folder, window_len)
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        yield f"{key}: {folder} holds no tokenizer; add its tokenizer.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        yield f"{key}: {folder} holds no weights; add its model.safetensors (other formats are not read)"
    for path in weights:
        yield from _check_weights(key, path)


def dictionary_paths(
    dictionary: Mapping[str, Any], workdir: Path, repository: Path
) -> dict[int, Path]:
    """Return the file (SAELens: the folder) of each layer of a dictionary of kind ``folder``."""
    folder, layers = dictionary["folder"], dictionary["layers"]
    if dictionary["format"] == "saelens":
        found = {layer: folder.replace("{layer}", str(layer)) for layer in layers or ()}
        return {layer: find_path(path, workdir, repository) for layer, path in found.items()}
    root = find_path(folder, workdir, repository)
    files = {int(p.stem[6:]): p for p in root.glob("layer_*.safetensors") if p.stem[6:].isdigit()}
    wanted = sorted(files) if layers is None else layers
    return {layer: files.get(layer, root / f"layer_{layer}.safetensors") for layer in wanted}


def check_dictionary(
    key: str, dictionary: Mapping[str, Any], workdir: Path, repository: Path
) -> Iterator[str]:
    """Yield what is wrong with the entry of a dictionary, as far as file names and settings tell."""
    if dictionary["kind"] == "trained":
        if dictionary["activation"] != "relu" and dictionary["k"] > dictionary["latents"]:
            yield f"{key}.k: {dictionary['k']} is more than {key}.latents ({dictionary['latents']}); lower it"
        if dictionary["tokens"] < dictionary["batch_tokens"]:
            yield f"{key}.tokens: {dictionary['tokens']} is less than one batch ({dictionary['batch_tokens']})"
        return
    if dictionary["kind"] == "transcoder":
        return  # its name is checked with those of the other tables
    if dictionary["kind"] == "openai":
        try:
            for layer in dictionary["layers"] or (0,):
                check_published(dictionary["site"], dictionary["version"], layer, key)
        except UserError as error:
            yield str(error)
        return
    if dictionary["format"] == "saelens" and dictionary["layers"] is None:
        yield f"{key}.layers: a list of layers is needed for the format saelens"
        return
    paths = dictionary_paths(dictionary, workdir, repository)
    if not paths:
        yield f"{key}.folder: {dictionary['folder']!r} holds no layer_*.safetensors; correct the path"
    for layer, path in paths.items():
        if not path.exists():
            yield f"{key}.folder: {path} does not exist, so there is no dictionary of layer {layer}"


def check_results(folder: Path) -> Iterator[str]:
    """Yield what keeps results from being written to a folder that may not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        yield f"results: {existing} is not a folder; remove it or run with another --directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"results: {existing} cannot be written; change its permissions or run with another --directory"


def _check_model_config(key: str, folder: Path, window_len: int) -> Iterator[str]:
    try:
        context = read_config(folder).n_ctx
    except UserError as error:
        yield f"{key}: {error}"
        return
    if window_len > context:
        yield (
            f"sampling.window_len: {window_len} is longer than the context of {key.removesuffix('.path')} "
            f"({context} tokens); set it to at most {context}"
        )


def _check_weights(key: str, path: Path) -> Iterator[str]:
    with open(path, "rb") as handle:
        start = handle.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            yield f"{key}: {path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
            return
        handle.seek(0)
        wanted = _safetensors_size(handle)
    size = path.stat().st_size
    if wanted is None:
        yield f"{key}: {path} is not a safetensors file; replace it by an intact copy"
    elif wanted != size:
        yield (
            f"{key}: {path} is damaged or truncated ({size} bytes where its header needs {wanted}); "
            "replace it by an intact copy"
        )


def _safetensors_size(handle: Any) -> int | None:
    """Return how long a safetensors file must be by its own header; None if the header cannot be read."""
    raw = handle.read(8)
    if len(raw) < 8:
        return None
    (length,) = struct.unpack("<Q", raw)
    if length > 100_000_000:
        return None
    try:
        header = json.loads(handle.read(length))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return 8 + length + max(ends, default=0)
