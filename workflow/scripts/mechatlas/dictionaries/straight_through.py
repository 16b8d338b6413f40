"""JumpReLU with gradients for its thresholds, by straight-through estimators (Rajamanoharan et al. 2024, section 3).

The derivative of a step is estimated by a rectangle of width ``bandwidth`` and area 1 around the threshold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return ``pre`` where it exceeds its threshold, else 0.

    Parameters
    ----------
    pre : Tensor [N, F]
    threshold : Tensor [F]
        Positive.
    bandwidth : float
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return 1 where ``pre [N, F]`` exceeds its threshold, else 0; the gradient goes to the threshold only."""
    return _Step.apply(pre, threshold, bandwidth)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        thresholds = -(threshold / ctx.bandwidth) * (near * gradient).sum(0)
        return gradient * (pre > threshold), thresholds, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        return None, -(near * gradient).sum(0) / ctx.bandwidth, None


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)
