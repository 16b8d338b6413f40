"""Adam (Kingma and Ba 2015) with gradient clipping, for a few named tensors.

``torch.optim`` does the same; its import alone takes longer than training a small dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Adam:
    """Optimiser of named leaf tensors.

    Parameters
    ----------
    parameters : mapping
        Name to tensor that requires a gradient; updated in place.
    betas : (float, float)
    eps : float
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = dict(parameters)
        self.betas, self.eps = betas, eps
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, number: int, rate: float) -> None:
        """Update all parameters that have a gradient and drop the gradients; ``number`` counts steps from 1."""
        beta1, beta2 = self.betas
        correction = (1 - beta2**number) ** 0.5
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            first, second = self.first[name], self.second[name]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            divisor = second.sqrt().div_(correction).add_(self.eps)
            parameter.addcdiv_(first, divisor, value=-rate / (1 - beta1**number))
            parameter.grad = None

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """Scale all gradients so that their common norm is at most ``largest``; return the norm before."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = (largest / (norm + 1e-12)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments by name."""
        first = {f"first.{name}": tensor for name, tensor in self.first.items()}
        return first | {f"second.{name}": tensor for name, tensor in self.second.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the moments of `tensors`."""
        for name in self.parameters:
            self.first[name].copy_(tensors[f"first.{name}"])
            self.second[name].copy_(tensors[f"second.{name}"])
