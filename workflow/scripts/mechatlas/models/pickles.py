"""PyTorch files from elsewhere, read without running what they may hold.

Such a file is a pickle, which can name any function to be called. torch's restricted reader makes tensors and plain
containers only; whatever else a file asks for is refused here, unread.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mechatlas.io import UserError

PROBLEMS = (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError)  # fmt: skip


def read_torch(path: str | Path) -> Any:
    """Return what ``torch.save`` stored, on the CPU: tensors, numbers, strings, and lists and dicts of them.

    Raises
    ------
    UserError
        If the file is missing, damaged, truncated, or asks for anything else to be made or called.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; correct the path or download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PROBLEMS as error:
        raise UserError(
            f"{path} is not a file of plain tensors: damaged, truncated, or a pickle that could run code; it was not "
            "loaded, take it from where it was published"
        ) from error


def read_tensor(path: str | Path) -> Tensor:
    """Return the one tensor of a file; raise `UserError` as `read_torch` does, or if it holds something else."""
    value = read_torch(path)
    if not isinstance(value, Tensor):
        raise UserError(f"{path} holds a {type(value).__name__}, not a tensor; take another copy")
    return value.detach()
