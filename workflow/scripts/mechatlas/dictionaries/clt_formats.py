"""Files of cross-layer transcoders: our own, and the folders of circuit-tracer (read and written).

Our own is one safetensors file with the tensors of `CrossLayerTranscoder.tensors`; the entry ``clt`` of the provenance
record in its header says the rest. Tensors are mapped, not copied: only the decoder rows that are used cost memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechatlas.dictionaries.activations import (
    Activation,
    JumpReLU,
    ReLU,
    activation_config,
    activation_from,
)
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.io import UserError, atomic_path, read_provenance
from mechatlas.io.tensors import read_tensors, write_tensors

VERSION = 1
CONFIG = "config.yaml"
HOOKS = {"resid_mid": "hook_resid_mid", "mlp_in": "mlp.hook_in"}
KINDS = {"cross_layer_transcoder": "cross", "transcoder_set": "per_layer"}


def save_clt(path: str | Path, clt: CrossLayerTranscoder, facts: Mapping[str, Any]) -> None:
    """Write a transcoder with the provenance ``facts``, atomically; equal transcoders give equal bytes."""
    write_tensors(path, clt.tensors(), {**facts, "clt": description(clt)})


def description(clt: CrossLayerTranscoder) -> dict[str, Any]:
    """Return the definition of a transcoder without its tensors, as JSON values."""
    return {
        "format": VERSION,
        "layers": clt.n_layers,
        "d_model": clt.d_model,
        "features": clt.n_features,
        "activations": [activation_config(activation) for activation in clt.activation],
        "decoders": clt.decoders,
        "skip": clt.skip is not None,
        "reads": clt.reads,
        "about": clt.about,
    }


def load_clt(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> CrossLayerTranscoder:
    """Read a transcoder that `save_clt` wrote.

    Parameters
    ----------
    path : str or Path
    device : str
    dtype : torch.dtype, optional
        That of the file by default; another one is a copy in memory.

    Raises
    ------
    UserError
        If the file is missing, damaged or of another kind, if its description does not fit its tensors, or if encoders
        or biases hold values that are not finite.
    """
    tensors, said = read_tensors(path, device=device), read_provenance(path).get("clt")
    if not isinstance(said, Mapping) or said.get("format") != VERSION:
        raise UserError(
            f"{path} is no transcoder file of this format (version {VERSION}); read it with the reader of its own "
            "format, or train it again"
        )
    keys = ("layers", "d_model", "features", "activations", "decoders", "skip", "reads")
    missing = [key for key in keys if key not in said]
    if missing:
        raise UserError(f"{path} lacks the entries {', '.join(missing)}; save the transcoder again")
    parts = _gathered(tensors, said, str(path))
    activation = [
        activation_from(config, threshold, features, str(path))
        for config, threshold, features in zip(
            said["activations"],
            parts.pop("threshold") or [None] * said["layers"],
            said["features"],
            strict=True,
        )
    ]
    clt = CrossLayerTranscoder(
        **parts,
        activation=activation,
        decoders=said["decoders"],
        reads=said["reads"],
        about=said.get("about"),
    )
    if (clt.d_model, clt.n_features) != (said["d_model"], said["features"]):
        raise UserError(f"{path}: description and weights do not fit; save the transcoder again")
    return checked_finite(clt, str(path)).to(device, dtype)


def read_circuit_tracer(
    folder: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> CrossLayerTranscoder:
    """Read a folder of circuit-tracer: a cross-layer transcoder, or a set of transcoders of single layers.

    The first holds ``W_enc_{l}.safetensors`` (``W_enc_{l} [F, d]``, ``b_enc_{l}``, ``b_dec_{l}``, and maybe
    ``threshold_{l}`` and ``W_skip_{l} [in, out]``) and ``W_dec_{l}.safetensors`` (``[F, L - l, d]``); the second
    ``layer_{l}.safetensors`` (``W_enc``, ``W_dec``, ``b_enc``, ``b_dec``, ``threshold``, ``W_skip [out, in]``).
    ``config.yaml`` may be absent: then features read the residual stream before the MLP.

    Raises
    ------
    UserError
        If files are missing or damaged, or features read or write somewhere else.
    """
    folder = Path(folder)
    config = _read_config(folder)
    cross = (folder / "W_enc_0.safetensors").is_file()
    count = _count(folder, r"W_enc_(\d+)\.safetensors" if cross else r"layer_(\d+)\.safetensors")
    read = _cross_layer if cross else _single_layer
    layers = [read(folder, layer, device) for layer in range(count)]
    wanted = "cross" if cross else "per_layer"
    if KINDS.get(config.get("model_kind"), wanted) != wanted:
        raise UserError(
            f"{folder}: {CONFIG} says {config['model_kind']}, but the files are of the other kind"
        )
    where, about = str(folder), {"format": "circuit-tracer"}
    clt = CrossLayerTranscoder(
        *([layer[name] for layer in layers] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")),
        [_activation(layer.get("threshold"), where) for layer in layers],
        decoders=wanted,
        skip=_all_or_none([layer.get("skip") for layer in layers], "W_skip", where),
        reads=_reads(config, folder),
        about=about | ({"model": config["model_name"]} if config.get("model_name") else {}),
    )  # fmt: skip
    return checked_finite(clt, where).to(device, dtype)


def write_circuit_tracer(folder: str | Path, clt: CrossLayerTranscoder) -> None:
    """Write a folder that circuit-tracer reads; the reader above gives the same transcoder back.

    Raises
    ------
    UserError
        If its activation has no counterpart there (TopK).
    """
    import yaml

    odd = {a.name for a in clt.activation} - {"relu", "jumprelu"}
    if odd:
        raise UserError(
            f"{clt.label}: activation {', '.join(odd)} has no counterpart in circuit-tracer's folders; "
            "use relu or jumprelu"
        )
    config = {
        "model_kind": "transcoder_set" if clt.decoders == "per_layer" else "cross_layer_transcoder",
        "feature_input_hook": HOOKS[clt.reads],
        "feature_output_hook": "hook_mlp_out",
        "model_name": clt.about.get("model", ""),
        "scan": clt.about.get("model", "local"),
    }
    with atomic_path(folder, folder=True) as temporary:
        (temporary / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        for layer in range(clt.n_layers):
            files = _single_files if clt.decoders == "per_layer" else _cross_files
            for name, tensors in files(clt, layer).items():
                write_tensors(temporary / name, tensors, {})


def checked_finite(clt: CrossLayerTranscoder, where: str) -> CrossLayerTranscoder:
    """Return a transcoder read from ``where``; raise `UserError` if a value other than a decoder's is not finite.

    Decoders, most of the file, are left unread: `mechatlas.circuits.graphs` checks the edges that they give.
    """
    for name, tensor in clt.tensors().items():
        if not name.startswith("decoder.") and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: {name} holds values that are not finite; train it again")
    return clt


def _gathered(tensors: Mapping[str, Tensor], said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the lists of tensors by name."""
    parts: dict[str, list[Tensor] | None] = {
        name: [tensors[f"{name}.{i}"] for i in range(said["layers"]) if f"{name}.{i}" in tensors] or None
        for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "target_scale", "skip")
    }  # fmt: skip
    short = [
        name
        for name, values in parts.items()
        if (len(values) if values else 0) != (said["layers"] if _needed(name, said) else 0)
    ]
    if short or sum(len(values or ()) for values in parts.values()) != len(tensors):
        raise UserError(
            f"{where}: tensors and description do not fit ({', '.join(short) or 'unknown tensors'}); "
            "save the transcoder again"
        )
    return parts


def _needed(name: str, said: Mapping[str, Any]) -> bool:
    if name == "threshold":
        return any(config.get("name") == "jumprelu" for config in said["activations"])
    return {"target_scale": said["decoders"] == "tied", "skip": said["skip"]}.get(name, True)


def _read_config(folder: Path) -> dict[str, Any]:
    import yaml

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of the transcoders")
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]}); restore it") from error
    return config if isinstance(config, dict) else {}


def _reads(config: Mapping[str, Any], folder: Path) -> str:
    names = {hook: name for name, hook in HOOKS.items()} | {"ln2.hook_normalized": "mlp_in"}
    found = config.get("feature_input_hook", HOOKS["resid_mid"])
    output = config.get("feature_output_hook", "hook_mlp_out")
    if found not in names or output != "hook_mlp_out":
        raise UserError(
            f"{folder}: features that read {found} and write {output} are not supported; use transcoders that read "
            f"one of {', '.join(names)} and write hook_mlp_out"
        )
    return names[found]


def _count(folder: Path, pattern: str) -> int:
    found = {int(m[1]) for path in folder.iterdir() if (m := re.fullmatch(pattern, path.name))}
    if not found or found != set(range(len(found))):
        raise UserError(
            f"{folder} holds transcoders of layers {sorted(found) or 'none'}; every layer from 0 on must be there"
        )
    return len(found)


def _cross_layer(folder: Path, layer: int, device: str) -> dict[str, Tensor]:
    path = folder / f"W_enc_{layer}.safetensors"
    read = read_tensors(path, device=device)
    named = {name.removesuffix(f"_{layer}"): x for name, x in read.items()}
    path_dec = folder / f"W_dec_{layer}.safetensors"
    decoder = read_tensors(path_dec, device=device).get(f"W_dec_{layer}")
    if decoder is None:
        raise UserError(f"{path_dec} lacks W_dec_{layer}; export the transcoder again")
    found = _renamed(named, path) | {"decoder": decoder}
    if "skip" in found:
        found["skip"] = found["skip"].mT.contiguous()
    return found


def _single_layer(folder: Path, layer: int, device: str) -> dict[str, Tensor]:
    path = folder / f"layer_{layer}.safetensors"
    named = read_tensors(path, device=device)
    if "W_dec" not in named:
        raise UserError(f"{path} lacks W_dec; export the transcoder again")
    nested = named.get("activation_function.threshold")
    if nested is not None:
        named["threshold"] = nested
    return _renamed(named, path) | {"decoder": named["W_dec"][:, None]}


def _renamed(named: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {"W_enc": "encoder", "b_enc": "encoder_bias", "b_dec": "decoder_bias"}
    missing = [name for name in names if name not in named]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; export the transcoder again")
    names |= {"threshold": "threshold", "W_skip": "skip"}
    found = {ours: named[theirs] for theirs, ours in names.items() if theirs in named}
    if "threshold" in found:
        found["threshold"] = found["threshold"].flatten()
    return found


def _activation(threshold: Tensor | None, where: str) -> Activation:
    if threshold is None:
        return ReLU()
    return activation_from({"name": "jumprelu"}, threshold, len(threshold), where)


def _all_or_none(tensors: list[Tensor | None], name: str, where: str) -> list[Tensor] | None:
    present = [x for x in tensors if x is not None]
    if present and len(present) < len(tensors):
        raise UserError(
            f"{where}: {name} is there for some layers only; export the transcoder again"
        )
    return present or None


def _cross_files(clt: CrossLayerTranscoder, layer: int) -> dict[str, dict[str, Tensor]]:
    rows = [clt.decoder_rows(layer, target) for target in clt.targets(layer)]
    encoder = {
        f"W_enc_{layer}": clt.encoder[layer],
        f"b_enc_{layer}": clt.encoder_bias[layer],
        f"b_dec_{layer}": clt.decoder_bias[layer],
    }
    if isinstance(clt.activation[layer], JumpReLU):
        encoder[f"threshold_{layer}"] = clt.activation[layer].threshold
    if clt.skip is not None:
        encoder[f"W_skip_{layer}"] = clt.skip[layer].mT
    return {
        f"W_enc_{layer}.safetensors": encoder,
        f"W_dec_{layer}.safetensors": {f"W_dec_{layer}": torch.stack(rows, 1)},
    }


def _single_files(clt: CrossLayerTranscoder, layer: int) -> dict[str, dict[str, Tensor]]:
    tensors = {
        "W_enc": clt.encoder[layer],
        "b_enc": clt.encoder_bias[layer],
        "W_dec": clt.decoder[layer][:, 0],
        "b_dec": clt.decoder_bias[layer],
    }
    if isinstance(clt.activation[layer], JumpReLU):
        tensors["activation_function.threshold"] = clt.activation[layer].threshold
    if clt.skip is not None:
        tensors["W_skip"] = clt.skip[layer]
    return {f"layer_{layer}.safetensors": tensors}
