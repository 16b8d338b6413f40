"""The definition of a sparse autoencoder, and of a transcoder of one layer, which is the same with another target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.dictionaries.activations import ALL, Activation, JumpReLU, Latents, TopK
from mechatlas.dictionaries.normalisation import NO_NORMALISATION, Normalisation
from mechatlas.dictionaries.sparse import decode_topk
from mechatlas.io import UserError

#: Pre-activations that `active` holds at once (64 MiB of float32).
ENTRIES_PER_BLOCK = 2**24


class SparseAutoencoder:
    """A dictionary: latents are a sparse code of an activation, each with a direction in the decoder.

    ::

        pre  = (normalise(x) - decoder_bias) encoder' + encoder_bias      decoder_bias only if subtract_bias
        z    = activation(pre)
        xhat = undo(z decoder + decoder_bias) + x skip'                   skip only if there is one

    Parameters
    ----------
    encoder : Tensor [F, d_in]
        A row for each latent.
    encoder_bias : Tensor [F]
    decoder : Tensor [F, d_out] or None
        A row for each latent; None if it is tied, that is, the encoder itself.
    decoder_bias : Tensor [d_out]
    activation : ReLU, TopK, JumpReLU or Identity
    normalisation : Normalisation
        Of the inputs, token by token.
    subtract_bias : bool
        Whether the decoder's bias is taken off the inputs.
    skip : Tensor [d_out, d_in], optional
        Linear connection past the latents (transcoders).
    about : mapping, optional
        Where it belongs, as JSON values: ``model``, ``model_hash``, ``layer``, the hook points ``reads`` and
        ``writes``, and whatever else is known.

    Raises
    ------
    UserError
        If shapes, dtypes or devices do not fit each other.

    Notes
    -----
    All tensors share one dtype and device, which inputs must have. An activation has any leading dimensions.
    """

    def __init__(
        self,
        encoder: Tensor,
        encoder_bias: Tensor,
        decoder: Tensor | None,
        decoder_bias: Tensor,
        activation: Activation,
        *,
        normalisation: Normalisation = NO_NORMALISATION,
        subtract_bias: bool = True,
        skip: Tensor | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder, self.encoder_bias = encoder, encoder_bias
        self.tied = decoder is None
        self.decoder = encoder if decoder is None else decoder
        self.decoder_bias, self.skip = decoder_bias, skip
        self.activation, self.normalisation = activation, normalisation
        self.subtract_bias = subtract_bias
        self.about = dict(about or {})
        _check(self)

    @property
    def n_latents(self) -> int:
        """Number of latents, by the weights."""
        return self.encoder.shape[0]

    @property
    def d_in(self) -> int:
        """Width of what is encoded."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is decoded."""
        return self.decoder.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.encoder.dtype

    def pre_activations(self, x: Tensor, latents: Latents = ALL) -> Tensor:
        """Return the pre-activations ``[..., n]`` of activations ``[..., d_in]`` for the named latents (all: n = F).

        Raises
        ------
        UserError
            If the width of ``x`` is not that of the dictionary.
        """
        if x.shape[-1] != self.d_in:
            raise UserError(
                f"{self.label} reads activations of width {self.d_in}, but got width {x.shape[-1]}; "
                "take the dictionary of this model, site and layer"
            )
        x = self.normalisation.apply(x)
        if self.subtract_bias:
            x = x - self.decoder_bias
        return F.linear(x, self.encoder[latents], self.encoder_bias[latents])

    def encode(self, x: Tensor, latents: Latents = ALL) -> Tensor:
        """Return latents ``[..., n]`` of activations ``[..., d_in]``.

        Parameters
        ----------
        x : Tensor [..., d_in]
        latents : slice or int64 [n]
            Which ones. TopK needs the pre-activations of all to know which are largest; the other activations compute
            only what is asked for.
        """
        asked = latents if self.activation.elementwise else ALL
        return self.activation(self.pre_activations(x, asked), latents)

    def encode_topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and indices ``[..., k]`` of the latents that a TopK dictionary keeps, in no order.

        Raises
        ------
        ValueError
            If its activation is not TopK.
        """
        if not isinstance(self.activation, TopK):
            raise ValueError(f"{self.label} has activation {self.activation.name}, not topk")
        return self.activation.select(self.pre_activations(x))

    def active(
        self, x: Tensor, above: Tensor | float = 0.0, latents: Latents = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find where latents are active, in bounded memory.

        Parameters
        ----------
        x : Tensor [N, d_in]
        above : float or Tensor [n]
            Only activations above this are kept, a number or one for each of ``latents``; not below 0.
        latents : slice or int64 [n]

        Returns
        -------
        tokens, latents, values : Tensor [E]
            Sorted by token. Latents are counted within ``latents``.
        """
        found = []
        size = max(1, ENTRIES_PER_BLOCK // self.n_latents)
        for first in range(0, len(x), size):
            z = self.encode(x[first : first + size], latents)
            token, latent = (z > above).nonzero(as_tuple=True)
            found.append((token + first, latent, z[token, latent]))
        if not found:
            none = torch.zeros(0, dtype=torch.int64, device=self.device)
            return none, none, torch.zeros(0, dtype=self.dtype, device=self.device)
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return reconstructions ``[..., d_out]`` of latents ``[..., F]``.

        ``x [..., d_in]``, the inputs, is needed where the dictionary normalises them or has a skip connection;
        without it such a dictionary raises ValueError.
        """
        return self._finish(z @ self.decoder, x)

    def decode_topk(self, values: Tensor, indices: Tensor, x: Tensor | None = None) -> Tensor:
        """Return reconstructions ``[N, d_out]`` of latents as `encode_topk` gives them (``x`` as in `decode`)."""
        return self._finish(decode_topk(values, indices, self.decoder), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return reconstructions ``[..., d_out]`` of activations ``[..., d_in]``."""
        if isinstance(self.activation, TopK):
            flat = x.reshape(-1, x.shape[-1])
            return self.decode_topk(*self.encode_topk(flat), flat).view(*x.shape[:-1], self.d_out)
        return self.decode(self.encode(x), x)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> SparseAutoencoder:
        """Return the dictionary with its tensors on a device and in a dtype."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        activation = self.activation
        if isinstance(activation, JumpReLU):
            activation = JumpReLU(moved(activation.threshold))
        return SparseAutoencoder(
            moved(self.encoder),
            moved(self.encoder_bias),
            None if self.tied else moved(self.decoder),
            moved(self.decoder_bias),
            activation,
            normalisation=self.normalisation,
            subtract_bias=self.subtract_bias,
            skip=moved(self.skip),
            about=self.about,
        )

    def decoder_norms(self) -> Tensor:
        """Return the Euclidean norm of each latent's decoder row, ``[F]``."""
        return self.decoder.norm(dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """Return every stored tensor by its name in our files (a tied decoder is not stored)."""
        named = {"encoder": self.encoder, "encoder_bias": self.encoder_bias}
        named |= {"decoder_bias": self.decoder_bias}
        if not self.tied:
            named["decoder"] = self.decoder
        if self.skip is not None:
            named["skip"] = self.skip
        if isinstance(self.activation, JumpReLU):
            named["threshold"] = self.activation.threshold
        return named

    @property
    def label(self) -> str:
        """What messages call it."""
        place = "".join(f" {self.about[key]}" for key in ("model", "reads") if key in self.about)
        layer = f" layer {self.about['layer']}" if "layer" in self.about else ""
        return f"the dictionary{' of' if place or layer else ''}{place}{layer}"

    def _finish(self, y: Tensor, x: Tensor | None) -> Tensor:
        y = self.normalisation.undo(y + self.decoder_bias, x)
        if self.skip is None:
            return y
        if x is None:
            raise ValueError("this dictionary has a skip connection: give the inputs to decode too")
        return y + F.linear(x, self.skip)


def checked_finite(sae: SparseAutoencoder, where: str) -> SparseAutoencoder:
    """Return a dictionary that was read from ``where``; raise `UserError` if a value of it is not finite."""
    for name, tensor in sae.tensors().items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{where}: {name} holds values that are not finite; take another copy or train it again"
            )
    return sae


def _check(sae: SparseAutoencoder) -> None:
    if sae.encoder.ndim != 2 or sae.decoder.ndim != 2:
        raise UserError(
            f"{sae.label}: encoder and decoder must be matrices with a row for each latent"
        )
    wanted = {
        "encoder_bias": (sae.n_latents,),
        "decoder": (sae.n_latents, sae.d_out),
        "decoder_bias": (sae.d_out,),
        "skip": (sae.d_out, sae.d_in),
        "threshold": (sae.n_latents,),
    }
    for name, tensor in sae.tensors().items():
        if tuple(tensor.shape) != wanted.get(name, tuple(tensor.shape)):
            raise UserError(
                f"{sae.label}: {name} has shape {list(tensor.shape)} where {list(wanted[name])} is needed "
                f"({sae.n_latents} latents, {sae.d_in} in, {sae.d_out} out)"
            )
        if (tensor.dtype, tensor.device) != (sae.dtype, sae.device):
            raise UserError(
                f"{sae.label}: {name} is {tensor.dtype} on {tensor.device}, the encoder {sae.dtype} on {sae.device}"
            )
    if (sae.subtract_bias or sae.normalisation.kind != "none") and sae.d_in != sae.d_out:
        raise UserError(
            f"{sae.label} reads width {sae.d_in} and writes width {sae.d_out}, so that neither its output bias can be "
            "taken off its inputs nor a normalisation of these be undone"
        )
    if isinstance(sae.activation, TopK) and not 0 < sae.activation.k <= sae.n_latents:
        raise UserError(
            f"{sae.label}: k is {sae.activation.k}, but there are {sae.n_latents} latents"
        )
