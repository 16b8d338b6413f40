"""How learning rate and sparsity penalty change over a training."""

from __future__ import annotations


def rate_share(step: int, steps: int, warmup: float, decay: float) -> float:
    """Return the share of the peak learning rate at a step.

    Parameters
    ----------
    step, steps : int
        Step from 0, and how many there are.
    warmup, decay : float
        Shares of the steps in which the rate rises linearly to the peak, and falls linearly to 0 at the end.
    """
    rising, falling = warmup * steps, decay * steps
    share = min(1.0, (step + 1) / rising) if rising > 0 else 1.0
    return min(share, (steps - step) / falling) if falling > 0 else share


def ramp(step: int, steps: int, share: float) -> float:
    """Return a factor that rises linearly from 0 to 1 in the first ``share`` of the steps."""
    return min(1.0, step / (share * steps)) if share > 0 else 1.0
