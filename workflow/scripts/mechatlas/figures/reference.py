"""Published numbers to compare with, with their source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """Numbers of a publication about executable explanations of attention heads.

    Attributes
    ----------
    citation : str
    mean_iou : float
        Lower bound that the authors report for the mean IoU of predicted and true attention.
    share : float
        Share of heads replaced by programs ...
    ratio : float
        ... and the perplexity then, relative to the untouched model.
    """

    citation: str
    mean_iou: float
    share: float
    ratio: float


HAYES_2026 = Reference(
    citation="Hayes, Li and Andreas 2026, arXiv 2606.19317",
    mean_iou=0.75,
    share=0.25,
    ratio=1.16,
)
