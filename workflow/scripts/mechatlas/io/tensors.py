"""Named torch tensors as safetensors with provenance. Apart from the rest of `io`, as it imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechatlas.io.artefacts import PROVENANCE_KEY
from mechatlas.io.atomic import atomic_path
from mechatlas.io.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors of any dtype, atomically. Equal tensors and facts give equal bytes."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # One entry only: safetensors writes several in no fixed order.
        save_file(contiguous, str(temporary), metadata={PROVENANCE_KEY: record})


def read_tensors(path: str | Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises
    ------
    UserError
        If the file is missing, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; run the rule that makes it, or correct the path")
    try:
        return load_file(str(path), device=device)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is damaged or truncated ({reason}); restore it or make it again"
        ) from error
