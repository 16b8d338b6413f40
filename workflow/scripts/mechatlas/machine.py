"""What this machine has, found out without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


def gpu_present() -> bool:
    """Return whether a CUDA device may be usable: one exists and CUDA_VISIBLE_DEVICES does not hide all."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path(path).exists() for path in GPU_DEVICES)
