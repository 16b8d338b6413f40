"""Folders of per-layer transcoders as circuit-tracer reads them: ``config.yaml`` and ``layer_{l}.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mechatlas.dictionaries.activations import JumpReLU, ReLU
from mechatlas.dictionaries.autoencoder import SparseAutoencoder, checked_finite
from mechatlas.dictionaries.points import from_lens_name
from mechatlas.io import UserError
from mechatlas.io.tensors import read_tensors

CONFIG = "config.yaml"
KIND = "transcoder_set"
THRESHOLD = "activation_function.threshold"
REQUIRED = {"W_enc", "W_dec", "b_enc", "b_dec"}


def read_transcoder(folder: str | Path, layer: int, *, device: str = "cpu") -> SparseAutoencoder:
    """Read the transcoder of one layer.

    Raises
    ------
    UserError
        If config or weights are missing or damaged, the folder holds another kind of model, the layer is not in it, or
        the weights contain something that this reader does not know.
    """
    config = read_transcoder_config(folder)
    path = layer_file(folder, config, layer)
    tensors = read_tensors(path, device=device)
    _check_names(tensors, str(path))
    where = str(Path(folder) / CONFIG)
    threshold = tensors.get(THRESHOLD, tensors.get("threshold"))
    sae = SparseAutoencoder(
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        ReLU() if threshold is None else JumpReLU(threshold.reshape(-1)),
        subtract_bias=False,
        skip=tensors.get("W_skip"),
        about={
            "origin": "circuit-tracer",
            "model": config.get("model_name"),
            "layer": layer,
            "reads": from_lens_name(config["feature_input_hook"], where)[0],
            "writes": from_lens_name(config["feature_output_hook"], where)[0],
        },
    )
    return checked_finite(sae, str(path))


def read_transcoder_config(folder: str | Path) -> dict[str, Any]:
    """Read and check the ``config.yaml`` of a folder."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; give a folder of transcoders as circuit-tracer reads them"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict) or config.get("model_kind") != KIND:
        kind = config.get("model_kind") if isinstance(config, dict) else None
        raise UserError(f"{path}: model_kind is {kind!r}; this reader is for {KIND}")
    missing = [key for key in ("feature_input_hook", "feature_output_hook") if key not in config]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}, which say what the transcoders read and write"
        )
    return config


def layer_file(folder: str | Path, config: Mapping[str, Any], layer: int) -> Path:
    """Return the file of a layer: that of the list ``transcoders``, if there is one, else ``layer_{l}.safetensors``."""
    listed = config.get("transcoders")
    if listed is None:
        path = Path(folder) / f"layer_{layer}.safetensors"
    elif not 0 <= layer < len(listed):
        raise UserError(f"{folder}: layer {layer} is out of range; its config lists {len(listed)}")
    elif str(listed[layer]).startswith("hf://"):
        raise UserError(
            f"{folder}: layer {layer} is at {listed[layer]}; download it and name the local file in {CONFIG}"
        )
    else:
        path = Path(folder) / listed[layer]
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is no transcoder of layer {layer}")
    return path


def _check_names(tensors: Mapping[str, Tensor], where: str) -> None:
    missing = REQUIRED - set(tensors)
    unknown = set(tensors) - REQUIRED - {"W_skip", THRESHOLD, "threshold"}
    if missing or unknown:
        raise UserError(
            f"{where} {'lacks' if missing else 'holds the unknown'} {', '.join(sorted(missing or unknown))}; "
            "it is no transcoder of this format"
        )
