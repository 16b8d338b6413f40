"""What turns pre-activations into latents: ReLU, TopK, JumpReLU, Identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechatlas.io import UserError

#: All latents, or those that are named: a slice, or indices int64 [n].
Latents = slice | Tensor
ALL = slice(None)


@dataclass(frozen=True)
class ReLU:
    """``max(pre, 0)``."""

    name = "relu"
    elementwise = True

    def __call__(self, pre: Tensor, latents: Latents = ALL) -> Tensor:
        """Return latents ``[N, n]`` of pre-activations ``[N, n]``."""
        return torch.relu(pre)


@dataclass(frozen=True)
class Identity:
    """The pre-activations themselves."""

    name = "identity"
    elementwise = True

    def __call__(self, pre: Tensor, latents: Latents = ALL) -> Tensor:
        """Return the pre-activations."""
        return pre


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """``pre`` where it is above the latent's threshold and above 0, else 0 (Rajamanoharan et al. 2024).

    Attributes
    ----------
    threshold : Tensor [F]
        Not its logarithm.
    """

    threshold: Tensor
    name = "jumprelu"
    elementwise = True

    def __call__(self, pre: Tensor, latents: Latents = ALL) -> Tensor:
        """Return latents ``[N, n]`` of the pre-activations of ``latents`` (n of them)."""
        return torch.relu(pre) * (pre > self.threshold[latents])


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of a token, the others 0 (Gao et al. 2024).

    Attributes
    ----------
    k : int
    relu : bool
        Whether those of them that are negative become 0 too.
    """

    k: int
    relu: bool = True
    name = "topk"
    elementwise = False

    def __call__(self, pre: Tensor, latents: Latents = ALL) -> Tensor:
        """Return latents ``[N, n]``; the k are found among all latents, so ``pre`` is ``[N, F]``."""
        values, indices = self.select(pre)
        return torch.zeros_like(pre).scatter(-1, indices, values)[..., latents]

    def select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and indices ``[N, k]`` of the kept latents of pre-activations ``[N, F]``."""
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.relu(values) if self.relu else values, indices


Activation = ReLU | Identity | JumpReLU | TopK
NAMES = ("relu", "topk", "jumprelu", "identity")


def activation_config(activation: Activation) -> dict[str, Any]:
    """Return what identifies an activation besides tensors, as JSON values."""
    config: dict[str, Any] = {"name": activation.name}
    if isinstance(activation, TopK):
        config |= {"k": activation.k, "relu": activation.relu}
    return config


def activation_from(
    config: Mapping[str, Any], threshold: Tensor | None, latents: int, where: str
) -> Activation:
    """Make an activation from what `activation_config` returned, and the thresholds ``[F]`` of a JumpReLU.

    Raises
    ------
    UserError
        If the activation is unknown, k does not fit, or thresholds are missing, superfluous or not finite;
        ``where`` names the file.
    """
    name = config.get("name")
    if name not in NAMES:
        raise UserError(
            f"{where}: activation {name!r} is not known; convert the dictionary to one of {', '.join(NAMES)}"
        )
    if (threshold is not None) != (name == "jumprelu"):
        raise UserError(
            f"{where}: activation {name} {'lacks its thresholds' if threshold is None else 'has no thresholds'}, "
            "so weights and description do not belong together; save the dictionary again"
        )
    if name == "topk":
        return TopK(_checked_k(config.get("k"), latents, where), bool(config.get("relu", True)))
    if name == "jumprelu":
        if threshold.shape != (latents,) or not bool(torch.isfinite(threshold).all()):
            raise UserError(
                f"{where}: thresholds of shape {list(threshold.shape)} must be {latents} finite numbers, "
                "one for each latent; save the dictionary again"
            )
        return JumpReLU(threshold)
    return ReLU() if name == "relu" else Identity()


def _checked_k(k: Any, latents: int, where: str) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= latents:
        raise UserError(
            f"{where}: k of activation topk is {k!r}; it must be an integer from 1 to {latents}, the number of latents"
        )
    return k
