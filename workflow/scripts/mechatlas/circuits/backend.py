"""Which float32 matrix product the CPU runs: the fast one, if it is still float32.

``torch.set_float32_matmul_precision("medium")`` lets oneDNN take the product. On CPUs without bfloat16 matrix units it
computes in float32, on some twice as fast as the default; on others it really drops to bfloat16, whose rounding is
larger than the effect of a single edge. So a product is tried, and "medium" kept only if it is exact. Speed has no say:
a choice that hangs on the load of the machine would change the last digits of results from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from mechatlas.io import UserError

TOLERANCE = 1e-6  # largest relative error of a product that counts as float32
SHAPE = (128, 768, 512)


@contextmanager
def fast_matmul() -> Iterator[str]:
    """Compute with the fastest exact float32 product; yields its name, ``"highest"`` or ``"medium"``.

    The choice is made once per process, for CPU tensors. The same setting would let a GPU round to TF32, so that a
    process that uses one computes with ``"highest"``. The former setting returns at the end.
    """
    before = torch.get_float32_matmul_precision()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    torch.set_float32_matmul_precision("highest" if on_gpu else choose())
    try:
        yield torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)


def choose() -> str:
    """Return ``"medium"`` if its error is below `TOLERANCE`, else ``"highest"``."""
    return "medium" if measure()["medium"] < TOLERANCE else "highest"


@lru_cache(maxsize=1)
def measure() -> dict[str, float]:
    """Compare a product under both settings with float64; for the provenance of exact results.

    Returns
    -------
    dict
        For ``"highest"`` and ``"medium"`` the largest error, relative to the largest entry of the product.
    """
    rows, inner, columns = SHAPE
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(inner, columns, generator=generator)
    wanted = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    errors = {}
    for name in ("highest", "medium"):
        torch.set_float32_matmul_precision(name)
        errors[name] = float((a @ b - wanted).abs().max() / wanted.abs().max())
    torch.set_float32_matmul_precision(before)
    return errors


def require_precision(dtype: torch.dtype, what: str, *, force: bool = False) -> None:
    """Raise `UserError` if a number format is too coarse for effects as small as those of one edge.

    Their typical size, 1e-4 logits, is below the rounding of bfloat16 in the base run, so that ranks become noise.
    """
    if dtype in (torch.bfloat16, torch.float16) and not force:
        raise UserError(
            f"{what} in {str(dtype).removeprefix('torch.')} would be rounding noise; set dtype: float32, or force it"
        )
