"""Number formats of model weights, and how float32 products are rounded on a GPU."""

from __future__ import annotations

import torch

from mechatlas.io import UserError

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def set_precision(dtype: str, device: str | torch.device) -> torch.dtype:
    """Return the format of weights and activations that ``dtype`` of the config means on a device.

    ``tf32`` keeps float32 and lets a GPU round the factors of matrix products to TF32 (10 bits of mantissa, sums in
    float32), for the whole process; a CPU computes as with ``float32``. Any other choice forbids that rounding.

    Raises
    ------
    UserError
        If the format is not known.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    return DTYPES[dtype]
