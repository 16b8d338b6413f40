"""The Muon optimiser for the matrices of small GPT-2 models."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# Coefficients of the quintic iteration, from the source given in `Muon`.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
FUSED = {"c_attn": 3}
"""Parameters that hold several matrices side by side, with their number (queries, keys and values)."""


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Return roughly the nearest matrix with orthonormal rows or columns (singular values 0.7 to 1.2).

    Parameters
    ----------
    matrix : torch.Tensor
        [n, m] float32.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    first, second, third = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon:
    """Momentum whose update is orthogonalised, so that every direction of a matrix learns at the same rate.

    Source: Jordan et al. 2024, Muon (kellerjordan.github.io/posts/muon). Queries, keys and values, which GPT-2
    stores as one matrix, are updated as three: in a joint update the values' large gradients keep queries and keys
    from learning, and attention stays uniform for long. Plain float32 products make it deterministic.

    Parameters
    ----------
    parameters : mapping of str to torch.Tensor
        Matrices [n, m] by name; names decide which are fused (`FUSED`).
    momentum, weight_decay : float
        Share of the old momentum, and decay per unit of learning rate.

    Attributes
    ----------
    momenta : dict of str to torch.Tensor
        The state: one tensor per parameter.
    """

    def __init__(
        self, parameters: Mapping[str, torch.Tensor], momentum: float, weight_decay: float
    ) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.momenta = {n: torch.zeros_like(p) for n, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters from their gradients with a learning rate."""
        for name, parameter in self.parameters.items():
            momentum = self.momenta[name]
            momentum.lerp_(parameter.grad, 1 - self.momentum)
            # Nesterov: look ahead along the momentum.
            ahead = parameter.grad.lerp(momentum, self.momentum)
            parts = next((count for key, count in FUSED.items() if key in name), 1)
            updates = [self._scaled(part) for part in ahead.chunk(parts, dim=1)]
            parameter.mul_(1 - rate * self.weight_decay)
            parameter.sub_(torch.cat(updates, dim=1), alpha=rate)

    @staticmethod
    def _scaled(matrix: torch.Tensor) -> torch.Tensor:
        # A tall matrix spreads the same update over more rows; this keeps its size per row.
        return orthogonalised(matrix) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
