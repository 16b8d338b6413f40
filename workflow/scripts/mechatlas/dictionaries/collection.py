"""A folder of dictionaries, one for each layer, whatever their format.

``index.json`` says for each layer which file holds its dictionary and in which format; trained ones lie beside it,
those of others stay where they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechatlas.dictionaries import files
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.dictionaries.clt_layers import layer_dictionary
from mechatlas.dictionaries.formats.openai import read_openai
from mechatlas.dictionaries.formats.saelens import WEIGHTS, read_saelens
from mechatlas.dictionaries.formats.transcoders import read_transcoder
from mechatlas.dictionaries.points import check_fits
from mechatlas.io import (
    UserError,
    atomic_path,
    file_digest,
    provenance,
    read_json,
    write_json,
)
from mechatlas.models.config import ModelConfig

INDEX = "index.json"
OWN = "mechatlas"
#: In place of a layer where one file holds the dictionaries of all layers.
EVERY_LAYER = "every"


def layer_file(layer: int) -> str:
    """Return the name of a layer's dictionary in our own format."""
    return f"layer_{layer}.safetensors"


def write_collection(
    folder: str | Path, dictionaries: Mapping[int, SparseAutoencoder], facts: Mapping[str, Any]
) -> None:
    """Write dictionaries by layer in our own format, the folder whole or not at all."""
    with atomic_path(folder, folder=True) as temporary:
        entries = {}
        for layer, sae in sorted(dictionaries.items()):
            files.save(temporary / layer_file(layer), sae, facts)
            entries[str(layer)] = {"format": OWN, "path": layer_file(layer)}
        write_json(temporary / INDEX, {"layers": entries}, facts)


def write_references(
    folder: str | Path, entries: Mapping[int, Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write a folder that only says where dictionaries of others are.

    Parameters
    ----------
    folder : str or Path
    entries : mapping
        Layer to ``format`` (``openai``, ``saelens``, ``circuit-tracer``, ``mechatlas``, or ``transcoder`` for a file of
        `clt_formats.save_clt`), ``path`` (absolute, or relative to the working directory) and what its reader needs
        besides, such as ``version``.
    facts : mapping
        Provenance.
    """
    with atomic_path(folder, folder=True) as temporary:
        layers = {str(layer): dict(entry) for layer, entry in sorted(entries.items())}
        write_json(temporary / INDEX, {"layers": layers}, facts)


def import_collection(
    folder: str | Path,
    entries: Mapping[int | str, Mapping[str, Any]],
    config: ModelConfig,
    about: Mapping[str, Any],
) -> None:
    """Write references (see `write_references`) after each dictionary was read and found to fit a model.

    The provenance holds the digest of every file. An entry of `EVERY_LAYER` is one for each layer of the model.
    """
    if EVERY_LAYER in entries:
        entries = dict.fromkeys(range(config.n_layers), entries[EVERY_LAYER])
    digests = {}
    with atomic_path(folder, folder=True) as temporary:
        # The same reader that will be used, on the index that will be written.
        write_references(temporary / "trial", entries, {})
        for layer, entry in sorted(entries.items()):
            read_dictionary(temporary / "trial", layer, config=config)
            digests[str(layer)] = _digest(Path(entry["path"]), layer)
        write_references(temporary / "checked", entries, provenance(**about, files=digests))
        for path in (temporary / "checked").iterdir():
            path.rename(temporary / path.name)
        for name in ("trial", "checked"):
            shutil.rmtree(temporary / name)


def _digest(path: Path, layer: int) -> str:
    """Return the digest of a dictionary's weights, which may lie in a folder."""
    if path.is_dir():
        weights = path / WEIGHTS
        path = weights if weights.is_file() else path / layer_file(layer)
    return file_digest(path)


def layers_of(folder: str | Path) -> list[int]:
    """Return the layers for which a folder has a dictionary."""
    return sorted(map(int, _index(folder)))


def read_dictionary(
    folder: str | Path,
    layer: int,
    *,
    config: ModelConfig | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> SparseAutoencoder:
    """Read the dictionary of a layer.

    Parameters
    ----------
    folder : str or Path
    layer : int
    config : ModelConfig, optional
        Of the model on which it shall run, to be sure that it fits.
    device : str
    dtype : torch.dtype, optional
        That of the file by default.

    Raises
    ------
    UserError
        If there is none, its file is missing, damaged or contradicts itself, or it does not fit the model.
    """
    entries = _index(folder)
    if str(layer) not in entries:
        raise UserError(
            f"{folder} has no dictionary of layer {layer}; there are {', '.join(entries) or 'none'}"
        )
    entry = dict(entries[str(layer)])
    kind, path = entry.pop("format", None), Path(entry.pop("path", ""))
    if kind == OWN:
        inside = Path(folder) / path
        sae = files.load(inside if inside.exists() else path, device=device)
    elif kind == "openai":
        sae = read_openai(path, layer=layer, device=device, **entry)
    elif kind == "saelens":
        sae = read_saelens(path, device=device)
    elif kind == "circuit-tracer":
        sae = read_transcoder(path, layer, device=device)
    elif kind == "transcoder":
        sae = layer_dictionary(load_clt(path, device=device), layer)
    else:
        raise UserError(f"{Path(folder) / INDEX}: format {kind!r} of layer {layer} is not known")
    if sae.about.get("layer", layer) != layer:
        raise UserError(
            f"{path} is a dictionary of layer {sae.about['layer']}, not of layer {layer}; correct its place"
        )
    sae.about["layer"] = layer
    return (check_fits(sae, config, str(path)) if config else sae).to(device, dtype)


def _index(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / INDEX
    index = read_json(path)
    if not isinstance(index, dict) or not isinstance(index.get("layers"), dict):
        raise UserError(f"{path} is no index of dictionaries; make the folder again")
    return index["layers"]
