"""Is a mean zero? For many measurements of the same prompts at once."""

from __future__ import annotations

import numpy as np

# Ten times what sums over a deep model in float32 are good to, whichever way they are added up.
ROUNDING = 1e-4


def t_p_values(values: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return two-sided p-values that means are zero, by the one-sample t-test (Student 1908).

    Unlike shares of bootstrap replicates they have no floor, so that a correction for many tests leaves something.

    Parameters
    ----------
    values : float array [C, N]
        NaN where there is no measurement.
    scale : float
        The size that values may have. Those within `ROUNDING` of it are taken for zero: rounding is the same for all
        prompts, so that a test would find it significant.

    Returns
    -------
    float64 [C]
        1 where all values are zero; NaN with fewer than two values.
    """
    from scipy.special import stdtr

    values = np.where(np.abs(values) <= ROUNDING * scale, 0.0, values)
    known = np.isfinite(values)
    count = known.sum(1)
    held = np.where(known, values, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = held.sum(1) / count
        square = (np.where(known, values - mean[:, None], 0.0) ** 2).sum(1) / (count - 1)
        t = mean / np.sqrt(square / count)
        p = 2 * stdtr(count - 1, -np.abs(t))
    return np.where(count < 2, np.nan, np.where(mean == 0, 1.0, p))
