"""Our own format of a dictionary: one safetensors file that says everything needed to run it.

The tensors are those of `SparseAutoencoder.tensors`; the description is the entry ``dictionary`` of the provenance
record in the header (see `mechatlas.io`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechatlas.dictionaries.activations import activation_config, activation_from
from mechatlas.dictionaries.autoencoder import SparseAutoencoder, checked_finite
from mechatlas.dictionaries.normalisation import normalisation_from
from mechatlas.io import UserError, read_provenance
from mechatlas.io.tensors import read_tensors, write_tensors

VERSION = 1
REQUIRED = ("encoder", "encoder_bias", "decoder_bias")
OPTIONAL = ("decoder", "skip", "threshold")


def save(path: str | Path, sae: SparseAutoencoder, facts: Mapping[str, Any]) -> None:
    """Write a dictionary with the provenance ``facts``, atomically; equal dictionaries give equal bytes."""
    write_tensors(path, sae.tensors(), {**facts, "dictionary": description(sae)})


def description(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return the definition of a dictionary without its tensors, as JSON values."""
    return {
        "format": VERSION,
        "latents": sae.n_latents,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        "activation": activation_config(sae.activation),
        "normalisation": sae.normalisation.config(),
        "tied": sae.tied,
        "subtract_bias": sae.subtract_bias,
        "skip": sae.skip is not None,
        "about": sae.about,
    }


def load(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> SparseAutoencoder:
    """Read a dictionary that `save` wrote.

    Parameters
    ----------
    path : str or Path
    device : str
    dtype : torch.dtype, optional
        That of the file by default.

    Raises
    ------
    UserError
        If the file is missing, damaged or no dictionary, if what it says about itself does not fit its tensors, or
        if activation or normalisation are unknown.
    """
    tensors = read_tensors(path, device=device)
    said = read_provenance(path).get("dictionary")
    if not isinstance(said, Mapping) or said.get("format") != VERSION:
        raise UserError(
            f"{path} is no dictionary file of this format (version {VERSION}); read it with the reader of its own "
            "format, or train it again"
        )
    return checked_finite(_assemble(tensors, said, str(path)), str(path)).to(device, dtype)


def _assemble(
    tensors: Mapping[str, Tensor], said: Mapping[str, Any], where: str
) -> SparseAutoencoder:
    _check_names(tensors, said, where)
    encoder = tensors["encoder"]
    sae = SparseAutoencoder(
        encoder,
        tensors["encoder_bias"],
        tensors.get("decoder"),
        tensors["decoder_bias"],
        activation_from(said["activation"], tensors.get("threshold"), encoder.shape[0], where),
        normalisation=normalisation_from(said["normalisation"], where),
        subtract_bias=bool(said["subtract_bias"]),
        skip=tensors.get("skip"),
        about=said.get("about"),
    )
    found = {"latents": sae.n_latents, "d_in": sae.d_in, "d_out": sae.d_out}
    wrong = [
        f"{key} {said[key]}, not {value}" for key, value in found.items() if said[key] != value
    ]
    if wrong:
        raise UserError(
            f"{where}: the description says {', '.join(wrong)} as its weights have it; save the dictionary again"
        )
    return sae


def _check_names(tensors: Mapping[str, Tensor], said: Mapping[str, Any], where: str) -> None:
    keys = ("latents", "d_in", "d_out", "activation", "normalisation", "tied", "subtract_bias")
    missing = [f"the entry {key}" for key in keys if key not in said]
    missing += [f"tensor {name}" for name in REQUIRED if name not in tensors]
    if not said.get("tied") and "decoder" not in tensors:
        missing.append("tensor decoder (though it is not said to be tied)")
    if said.get("skip") and "skip" not in tensors:
        missing.append("tensor skip")
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; save the dictionary again")
    unknown = sorted(set(tensors) - set(REQUIRED) - set(OPTIONAL))
    if unknown or (said.get("tied") and "decoder" in tensors):
        raise UserError(
            f"{where} holds {', '.join(unknown) or 'a decoder though it is said to be tied'}, which would be ignored; "
            "save the dictionary again"
        )
