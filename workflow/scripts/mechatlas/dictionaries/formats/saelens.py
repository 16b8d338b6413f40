"""Folders of SAELens: ``cfg.json`` and ``sae_weights.safetensors`` (versions 2 to 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mechatlas.dictionaries.activations import Activation, JumpReLU, ReLU, TopK
from mechatlas.dictionaries.autoencoder import SparseAutoencoder, checked_finite
from mechatlas.dictionaries.normalisation import Normalisation
from mechatlas.dictionaries.points import RESIDUAL, from_lens_name, lens_name
from mechatlas.io import UserError, atomic_path, read_json
from mechatlas.io.tensors import read_tensors, write_tensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
#: Architectures that we read, with the activation of each.
ARCHITECTURES = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
NORMALISATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "unit_norm"}
VERSION = "6.0.0"  # whose config we write


def read_saelens(folder: str | Path, *, device: str = "cpu") -> SparseAutoencoder:
    """Read a dictionary that SAELens saved.

    Raises
    ------
    UserError
        If files are missing or damaged, or the dictionary is of a kind that we cannot represent exactly: another
        architecture or activation, inputs scaled by a factor that is not in the folder, a scaling from fine-tuning.
    """
    where = str(Path(folder) / CONFIG)
    config = _modern(read_json(where), where)
    tensors = read_tensors(Path(folder) / WEIGHTS, device=device)
    _check_names(tensors, config, str(Path(folder) / WEIGHTS))
    reads, layer = _point(config, "hook_name", where)
    writes = _point(config, "hook_name_out", where)[0] or reads
    encoder, decoder = tensors["W_enc"].T.contiguous(), tensors["W_dec"]
    bias, activation = tensors["b_enc"], _activation(config, tensors, where)
    if config.get("rescale_acts_by_decoder_norm"):
        # TopK chooses by what a latent writes: the same as unit decoder rows and encoder rows longer by as much.
        norms = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * norms[:, None], bias * norms, decoder / norms[:, None]
    about = {"origin": "saelens", "model": config["metadata"].get("model_name")}
    about |= {"reads": reads, "writes": writes, "layer": layer}
    sae = SparseAutoencoder(
        encoder,
        bias,
        decoder,
        tensors["b_dec"],
        activation,
        normalisation=_normalisation(config, reads, where),
        subtract_bias=bool(config["apply_b_dec_to_input"]),
        skip=tensors.get("W_skip"),
        about={key: value for key, value in about.items() if value is not None},
    )
    _check_sizes(sae, config, where)
    return checked_finite(sae, where)


def write_saelens(folder: str | Path, sae: SparseAutoencoder, facts: Mapping[str, Any]) -> None:
    """Write a dictionary as a folder that SAELens 6 loads (``SAE.load_from_disk``), whole or not at all.

    Raises
    ------
    UserError
        If SAELens cannot represent it: Identity, TopK without ReLU, centred inputs, layer or hook point not known.
    """
    config = _config_of(sae, str(folder))
    tensors = {
        "W_enc": sae.encoder.T,
        "b_enc": sae.encoder_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }
    if isinstance(sae.activation, JumpReLU):
        tensors["threshold"] = sae.activation.threshold
    if sae.skip is not None:
        tensors["W_skip"] = sae.skip
    # A tied decoder would be the same storage twice.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    with atomic_path(folder, folder=True) as temporary:
        write_tensors(temporary / WEIGHTS, tensors, facts)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _modern(config: Any, where: str) -> dict[str, Any]:
    """Bring the config of any version into the form of version 6."""
    if not isinstance(config, dict) or not {"d_in", "d_sae"} <= config.keys():
        raise UserError(f"{where} is no configuration of SAELens (it lacks d_in or d_sae)")
    old = "metadata" not in config
    new = dict(config)
    if old:
        new["metadata"] = dict(config)
        new.setdefault("apply_b_dec_to_input", True)
        new.setdefault("architecture", "standard")
        normalised = new.get("normalize_activations")
        if not normalised:
            new["normalize_activations"] = "none"
        elif normalised is True:
            new["normalize_activations"] = "expected_average_only_in"
        name = new.get("activation_fn_str", new.get("activation_fn", "relu"))
        settings = new.get("activation_fn_kwargs") or {}
        if name == "topk":
            new |= {"architecture": "topk", "k": settings.get("k")}
        elif name != "relu":
            raise UserError(f"{where}: activation {name!r} is not known; there are relu and topk")
    missing = [
        key
        for key in ("architecture", "apply_b_dec_to_input", "normalize_activations")
        if key not in new
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}, on which the latents depend")
    if new["architecture"] not in ARCHITECTURES:
        raise UserError(
            f"{where}: architecture {new['architecture']!r} is not supported; "
            f"there are {', '.join(ARCHITECTURES)}"
        )
    if new.get("finetuning_scaling_factor"):
        raise UserError(f"{where}: finetuning_scaling_factor is not supported; fold it into W_dec")
    return new


def _point(config: Mapping[str, Any], key: str, where: str) -> tuple[str | None, int | None]:
    metadata = config["metadata"]
    name = metadata.get(key) or (metadata.get("hook_point") if key == "hook_name" else None)
    if not name:
        return None, None
    if metadata.get("hook_head_index") is not None:
        raise UserError(f"{where}: a dictionary of one head (hook_head_index) is not supported")
    return from_lens_name(name, where)


def _activation(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Activation:
    kind = ARCHITECTURES[config["architecture"]]
    if kind == "jumprelu":
        return JumpReLU(tensors["threshold"])
    if kind == "relu":
        return ReLU()
    k = config.get("k")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"{where}: k is {k!r}, which must be a positive integer")
    return TopK(k)


def _normalisation(config: Mapping[str, Any], reads: str | None, where: str) -> Normalisation:
    kind = config["normalize_activations"]
    if kind not in NORMALISATIONS:
        raise UserError(
            f"{where}: normalize_activations {kind!r} needs statistics that are not in the folder; fold them into "
            "the weights with SAELens (fold_activation_norm_scaling_factor) and save it again"
        )
    kwargs = config["metadata"].get("model_from_pretrained_kwargs") or {}
    if not kwargs.get("center_writing_weights") or reads not in RESIDUAL:
        return Normalisation(NORMALISATIONS[kind])
    if kind != "none":
        raise UserError(
            f"{where}: normalize_activations {kind!r} on a model with centred writing weights is not supported"
        )
    # It was trained on a model whose residual stream has mean 0; ours has not.
    return Normalisation("centre")


def _check_names(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> None:
    wanted = {"W_enc", "b_enc", "W_dec", "b_dec"}
    if ARCHITECTURES[config["architecture"]] == "jumprelu":
        wanted.add("threshold")
    if "skip" in config["architecture"]:
        wanted.add("W_skip")
    # Left over from fine-tuning; a one when it was not used.
    found = set(tensors) - {"scaling_factor"}
    if found != wanted:
        raise UserError(
            f"{where}: architecture {config['architecture']} has tensors {', '.join(sorted(wanted))}, but the file "
            f"holds {', '.join(sorted(found))}"
        )
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise UserError(
                f"{where}: {name} has shape {list(tensors[name].shape)}, not a matrix's"
            )


def _check_sizes(sae: SparseAutoencoder, config: Mapping[str, Any], where: str) -> None:
    if (config["d_in"], config["d_sae"]) != (sae.d_in, sae.n_latents):
        raise UserError(
            f"{where} says d_in {config['d_in']} and d_sae {config['d_sae']}, but the weights are for "
            f"{sae.d_in} and {sae.n_latents}"
        )


def _config_of(sae: SparseAutoencoder, where: str) -> dict[str, Any]:
    transcoder = sae.d_out != sae.d_in or sae.about.get("reads") != sae.about.get("writes")
    transcoder = transcoder or sae.skip is not None
    if transcoder:
        names = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
    else:
        names = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
    architecture = names.get(sae.activation.name)
    normalisations = {ours: theirs for theirs, ours in NORMALISATIONS.items()}
    if (
        architecture is None
        or (isinstance(sae.activation, TopK) and not sae.activation.relu)
        or sae.normalisation.kind not in normalisations
        or (transcoder and (sae.subtract_bias or sae.normalisation.kind != "none"))
    ):
        raise UserError(
            f"{where}: SAELens has no {'transcoder' if transcoder else 'autoencoder'} with activation "
            f"{sae.activation.name} and normalisation {sae.normalisation.kind}; save it in our own format"
        )
    if sae.skip is not None:
        architecture = architecture.replace("transcoder", "skip_transcoder")
    if not {"reads", "layer"} <= sae.about.keys():
        raise UserError(f"{where}: hook point and layer of the dictionary are not known (about)")
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_bias,
        "normalize_activations": normalisations[sae.normalisation.kind],
        "reshape_activations": "hook_z" if sae.about["reads"] == "z" else "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": sae.about.get("model"),
            "hook_name": lens_name(sae.about["reads"], sae.about["layer"]),
            "hook_head_index": None,
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
        },
    }
    if transcoder:
        config["d_out"] = sae.d_out
        config["metadata"]["hook_name_out"] = lens_name(
            sae.about.get("writes", sae.about["reads"]), sae.about["layer"]
        )
    if isinstance(sae.activation, TopK):
        config |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": False}
    return config


def is_saelens(folder: str | Path) -> bool:
    """Return whether a path is a folder of this format."""
    return all((Path(folder) / name).is_file() for name in (CONFIG, WEIGHTS))
