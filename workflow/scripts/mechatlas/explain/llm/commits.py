"""Durable writes without a wait for the disk at each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Statement = tuple[str, Sequence[Any]]


class GroupCommit:
    """Writes what arrives while the disk is busy as one transaction.

    A commit that survives a power cut waits for the disk, some milliseconds on an SSD and more elsewhere: one commit
    each for the reservation and the answer of every request would be the bottleneck, and would stop the event loop.

    Parameters
    ----------
    write : callable
        Executes statements as one durable transaction. It runs in a thread of its own, one call at a time.
    """

    def __init__(self, write: Callable[[Sequence[Statement]], None]) -> None:
        self._write = write
        self._waiting: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm-store")

    async def commit(self, statements: Sequence[Statement]) -> None:
        """Return when the statements are on the disk; they are executed in the order of these calls."""
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        self._waiting.append((statements, written))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._drain())
        await written

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            statements = [statement for some, _ in group for statement in some]
            job = loop.run_in_executor(self._thread, self._write, statements)
            await asyncio.wait([job])
            for _, written in group:
                if written.done():
                    continue  # its caller has been cancelled
                if (error := job.exception()) is not None:
                    written.set_exception(error)
                else:
                    written.set_result(None)

    def close(self) -> None:
        """Wait for the write under way and end the thread."""
        self._thread.shutdown()
