"""One process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path

from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")

LOOK_EVERY_SECONDS, TELL_EVERY_SECONDS = 0.2, 60.0


class FileLock:
    """An exclusive lock, held from construction until `release` or the end of the process, however it ends.

    Parameters
    ----------
    path : Path
        What is locked. The lock itself is a dot-file beside it, which stays behind: removing it would let two
        processes hold two locks of the same name.
    wait : bool
        Wait for another holder, saying so in the log, rather than raise.

    Raises
    ------
    UserError
        If another process holds the lock and ``wait`` is false.
    """

    def __init__(self, path: Path, *, wait: bool = True) -> None:
        self.path = path
        self._file = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        told = -TELL_EVERY_SECONDS
        while not self._try():
            if not wait:
                holder = self._holder()
                os.close(self._file)
                raise UserError(f"{path} is in use by {holder}; try again when that has finished")
            if time.monotonic() - told >= TELL_EVERY_SECONDS:
                told = time.monotonic()
                logger.info("waiting for %s, which is in use by %s", path, self._holder())
            time.sleep(LOOK_EVERY_SECONDS)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let the next process in."""
        os.close(self._file)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> str:
        number = os.pread(self._file, 32, 0).decode()
        return f"process {number}" if number else "another process"
