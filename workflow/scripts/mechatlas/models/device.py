"""Which device a job runs on."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")
DEVICES = ("auto", "cpu", "cuda")
POLL_SECONDS = 0.2

# Closing the handle releases the lock, so it stays open until the process ends (also by SIGKILL).
_held: list[IO[str]] = []


def pick_device(gpu: int, device: str = "auto") -> str:
    """Choose where a job computes, and claim the GPU if it is one.

    Parameters
    ----------
    gpu : int
        What the workflow granted the job (``resources.gpu``); 0 means the CPU.
    device : str
        ``auto`` (a GPU when granted and present), ``cpu`` or ``cuda``, from the config.

    Returns
    -------
    str
        ``"cpu"`` or ``"cuda:N"``. When ``CUDA_VISIBLE_DEVICES`` is set, the cluster or the user has chosen and
        the first visible GPU is taken; otherwise a free one is claimed by an advisory file lock, waiting if
        all are claimed by other jobs of this user.

    Raises
    ------
    UserError
        If ``device`` is not one of the three.
    """
    if device not in DEVICES:
        raise UserError(f"device: {device!r} is unknown; choose one of {', '.join(DEVICES)}")
    if device == "cpu" or gpu <= 0:
        if device == "cuda":
            logger.warning(
                "device: cuda, but the job was granted no GPU (--resources gpu=0): using the CPU"
            )
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        if device == "cuda":
            logger.warning("device: cuda, but torch finds no GPU: using the CPU")
        return "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return "cuda:0"
    return f"cuda:{claim(torch.cuda.device_count())}"


def device_name(device: str) -> str:
    """Return ``cpu``, or the name of the GPU that ``cuda:N`` stands for."""
    if device == "cpu":
        return device
    import torch

    return torch.cuda.get_device_name(device)


def claim(count: int, folder: Path | None = None) -> int:
    """Lock one of ``count`` numbered slots until the process ends; wait while all are taken."""
    folder = folder or Path(tempfile.gettempdir(), f"mechatlas-gpu-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    while True:
        for slot in range(count):
            handle = open(folder / f"{slot}.lock", "w")  # noqa: SIM115 (must outlive the function)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            _held.append(handle)
            return slot
        time.sleep(POLL_SECONDS)
