"""The largest batch that a device has memory for."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")


def largest_batch(attempt: Callable[[int], object], most: int, key: str) -> int:
    """Return the first of ``most``, ``most // 2``, ... 1 with which ``attempt`` does not run out of memory.

    Parameters
    ----------
    attempt : callable
        Does the work of one batch of the given size, at its peak of memory.
    most : int
    key : str
        The configuration key of ``most``, for messages.

    Raises
    ------
    UserError
        If not even a batch of one fits.
    """
    size = most
    while True:
        try:
            attempt(size)
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
        else:
            if size < most:
                logger.warning(
                    "%s: %d needs more memory than the device has free; going on with %d, so the last digits of "
                    "results may differ from a run with %d", key, most, size, most,
                )  # fmt: skip
            return size
        # Outside the handler, whose traceback would keep the tensors of the attempt alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise UserError(
                f"{key}: not even a batch of 1 fits into the memory of the device ({reason}); use shorter windows, "
                "dtype: bfloat16, or device: cpu"
            )
        size //= 2
