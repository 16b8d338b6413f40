"""OpenAI's autoencoders for GPT-2 small (openai/sparse_autoencoder; Gao et al. 2024 for version 5).

A file is what ``torch.save`` made of a state dict, with the name of the activation and its settings among the
tensors. Whether inputs are normalised is **not** in the file: it follows from the version. Version 5 is trained on
normalised inputs; without them it gives other latents, so nothing is guessed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from mechatlas.dictionaries.activations import Activation, Identity, ReLU, TopK
from mechatlas.dictionaries.autoencoder import SparseAutoencoder, checked_finite
from mechatlas.dictionaries.normalisation import Normalisation, normalisation_from
from mechatlas.dictionaries.published import SITES, VERSIONS, check_published
from mechatlas.io import UserError

STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
PARTS = ("pre_bias", "encoder.weight", "latent_bias")
DECODER, TIED = "decoder.weight", "decoder.linear.weight"


def read_openai(
    path: str | Path,
    *,
    version: str | None = None,
    site: str | None = None,
    layer: int | None = None,
    normalisation: str | None = None,
    device: str = "cpu",
) -> SparseAutoencoder:
    """Read an autoencoder in OpenAI's format. No code that a file might hold is run.

    Parameters
    ----------
    path : str or Path
    version : str, optional
        One of `VERSIONS`, which says how inputs are normalised and which activation to expect.
    site, layer : optional
        What it belongs to, for `SparseAutoencoder.about`.
    normalisation : str, optional
        For a file of another origin, in place of ``version``: ``none`` or ``layer_norm``.

    Raises
    ------
    UserError
        If the file is missing or damaged, holds unknown tensors, an unknown activation or another one than its
        version, or neither version nor normalisation are given.
    """
    where = str(path)
    state = _read_state(path, device)
    if version is not None:
        check_published(
            site or VERSIONS.get(version, {"sites": ("",)})["sites"][0], version, layer or 0, where
        )
    activation = _activation(state, where)
    found = type(activation).__name__
    if version is not None and found != VERSIONS[version]["activation"]:
        raise UserError(
            f"{where} has activation {found}, but version {version!r} has {VERSIONS[version]['activation']}; "
            "correct the version, on which the normalisation of inputs depends"
        )
    about: dict[str, Any] = {"origin": "openai"}
    if version is not None:
        about |= {"model": "gpt2", "version": version}
    if site is not None:
        about |= {"reads": SITES[site], "writes": SITES[site], "site": site}
    if layer is not None:
        about["layer"] = layer
    sae = SparseAutoencoder(
        state["encoder.weight"],
        state["latent_bias"],
        _decoder(state, where),
        state["pre_bias"],
        activation,
        normalisation=_normalisation(version, normalisation, where),
        about=about,
    )
    return checked_finite(sae, where)


def write_openai(path: str | Path, sae: SparseAutoencoder) -> None:
    """Write a dictionary in OpenAI's format, for tools that read it.

    Raises
    ------
    UserError
        If the format cannot say what the dictionary is: JumpReLU, a transcoder, or a normalisation that readers would
        not infer (they normalise TopK and nothing else).
    """
    from mechatlas.io import atomic_path

    implied = "layer_norm" if sae.activation.name == "topk" else "none"
    if sae.activation.name == "jumprelu" or sae.skip is not None or not sae.subtract_bias:
        raise UserError(
            f"{path}: OpenAI's format has no JumpReLU and no transcoders; save it as safetensors"
        )
    if sae.normalisation.kind != implied:
        raise UserError(
            f"{path}: readers of OpenAI's format take a {sae.activation.name} dictionary to have normalisation "
            f"{implied}, but it has {sae.normalisation.kind}; save it as safetensors"
        )
    names = {"relu": "ReLU", "identity": "Identity", "topk": "TopK"}
    state: dict[str, Any] = {
        "pre_bias": sae.decoder_bias,
        "encoder.weight": sae.encoder,
        "latent_bias": sae.encoder_bias,
        "stats_last_nonzero": torch.zeros(sae.n_latents, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(sae.n_latents),
        "latents_mean_square": torch.zeros(sae.n_latents),
        "activation": names[sae.activation.name],
        "activation_state_dict": {},
    }
    state[TIED if sae.tied else DECODER] = sae.encoder if sae.tied else sae.decoder.T.contiguous()
    if isinstance(sae.activation, TopK):
        postact = "ReLU" if sae.activation.relu else "Identity"
        state["activation_state_dict"] = {"k": sae.activation.k, "postact_fn": postact}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _read_state(path: str | Path, device: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; correct the path or download it")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, UnpicklingError) as error:
        raise UserError(
            f"{path} is damaged, truncated or no state dict ({str(error).splitlines()[0]}); download it again"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state dict; it is no autoencoder of this format")
    missing = [name for name in PARTS if not isinstance(state.get(name), torch.Tensor)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it is no autoencoder of this format")
    known = {*PARTS, *STATISTICS, DECODER, TIED, "activation", "activation_state_dict"}
    # Older files carry the activation's settings among the tensors.
    unknown = [name for name in state if name not in known and not name.startswith("activation.")]
    if unknown:
        raise UserError(
            f"{path} holds {', '.join(sorted(unknown))}, which this reader does not know and will not ignore"
        )
    return state


def _decoder(state: Mapping[str, Any], where: str) -> torch.Tensor | None:
    """Return the decoder ``[F, d]``, or None for a tied one, which must equal the encoder."""
    if DECODER in state:
        return state[DECODER].T.contiguous()
    if TIED not in state:
        raise UserError(f"{where} holds neither {DECODER} nor {TIED}, so it has no decoder")
    if not torch.equal(state[TIED], state["encoder.weight"]):
        raise UserError(
            f"{where} is a tied checkpoint whose decoder ({TIED}) is not its encoder; the file contradicts itself"
        )
    return None


def _activation(state: Mapping[str, Any], where: str) -> Activation:
    name = state.get("activation", "ReLU")
    settings = state.get("activation_state_dict") or {}
    if name == "TopK":
        k, postact = settings.get("k"), settings.get("postact_fn")
        if postact not in ("ReLU", "Identity") or not isinstance(k, int | torch.Tensor):
            raise UserError(
                f"{where}: activation TopK with k {k!r} and postact_fn {postact!r} is not known"
            )
        return TopK(int(k), relu=postact == "ReLU")
    if name == "ReLU":
        return ReLU()
    if name == "Identity":
        return Identity()
    raise UserError(f"{where}: activation {name!r} is not known; there are ReLU, TopK and Identity")


def _normalisation(version: str | None, given: str | None, where: str) -> Normalisation:
    said = VERSIONS[version]["normalised"] if version is not None else given
    if given is not None and said != given:
        raise UserError(f"{where}: version {version!r} has normalisation {said}, not {given}")
    if said is None:
        raise UserError(
            f"{where}: this format does not say whether inputs are normalised, and the latents depend on it; give the "
            f"version ({', '.join(repr(name) for name in VERSIONS)}) or normalisation: none or layer_norm"
        )
    return normalisation_from({"kind": said}, where)
