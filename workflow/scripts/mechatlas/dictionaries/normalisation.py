"""What a dictionary does to each token's activation before it encodes it, and undoes after decoding.

A dictionary that was trained on normalised inputs gives other latents on raw ones, without any error. The
normalisation is therefore part of its definition here and of its files, and no reader guesses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechatlas.io import UserError

KINDS = ("none", "layer_norm", "unit_norm", "centre")


@dataclass(frozen=True)
class Normalisation:
    """A normalisation of single tokens.

    Attributes
    ----------
    kind : str
        ``none``; ``layer_norm``: less the mean, divided by standard deviation (n - 1) plus ``eps``;
        ``unit_norm``: scaled to the norm sqrt(d); ``centre``: less the mean.
    eps : float
        Of ``layer_norm``.
    """

    kind: str = "none"
    eps: float = 1e-5

    def apply(self, x: Tensor) -> Tensor:
        """Normalise activations ``[N, d]``."""
        if self.kind == "layer_norm":
            centred = x - x.mean(-1, keepdim=True)
            return centred / (x.std(-1, keepdim=True) + self.eps)
        if self.kind == "unit_norm":
            return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))
        return x - x.mean(-1, keepdim=True) if self.kind == "centre" else x

    def undo(self, y: Tensor, x: Tensor | None) -> Tensor:
        """Bring reconstructions ``[N, d]`` back to the scale of the inputs ``x [N, d]``.

        As in the published autoencoders, ``eps`` is not part of the way back.

        Raises
        ------
        ValueError
            If ``x`` is needed and not given.
        """
        if self.kind == "none":
            return y
        if x is None:
            raise ValueError(
                f"this dictionary normalises its inputs ({self.kind}): give them to decode too"
            )
        if self.kind == "layer_norm":
            return y * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
        if self.kind == "centre":
            return y + x.mean(-1, keepdim=True)
        return y * (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5)

    def config(self) -> dict[str, Any]:
        """Return the definition as JSON values."""
        return (
            {"kind": self.kind, "eps": self.eps}
            if self.kind == "layer_norm"
            else {"kind": self.kind}
        )


NO_NORMALISATION = Normalisation()


def normalisation_from(config: Mapping[str, Any] | None, where: str) -> Normalisation:
    """Make a normalisation from what `Normalisation.config` returned.

    Raises
    ------
    UserError
        If it is missing or unknown; ``where`` names the file.
    """
    kind = (config or {}).get("kind")
    if kind not in KINDS:
        raise UserError(
            f"{where}: the normalisation of inputs is {'not stated' if kind is None else repr(kind)}, and the latents "
            f"depend on it; state one of {', '.join(KINDS)}"
        )
    return Normalisation(kind, float(config.get("eps", 1e-5)))
