"""Progress that suits a terminal as well as a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_SECONDS = 5.0

logger = logging.getLogger("mechatlas")


def progress(
    iterable: Iterable[T],
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    status: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Iterate and report rate and remaining time.

    On a terminal this is a tqdm bar. Elsewhere one plain line is logged every few seconds and at the end, so
    that log files stay readable.

    Parameters
    ----------
    iterable : iterable
    total : int, optional
        Number of items; taken from ``len(iterable)`` when possible.
    desc, unit : str
        What is being done and what one item is called.
    status : callable, optional
        Returns what else each line says, such as the loss of a training.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(iterable, total=total, desc=desc, unit=unit)
        for item in bar:
            yield item
            if status:
                bar.set_postfix_str(status(), refresh=False)
        return
    yield from _logged(iterable, total, desc, unit, status or str)


def _logged(
    iterable: Iterable[T], total: int | None, desc: str, unit: str, status: Callable[[], str]
) -> Iterator[T]:
    start = last = time.monotonic()
    done, logged = 0, -1
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            last, logged = now, done
            logger.info(_line(desc, unit, done, total, now - start, status()))
    if done != logged:
        logger.info(_line(desc, unit, done, total, time.monotonic() - start, status()))


def _line(desc: str, unit: str, done: int, total: int | None, elapsed: float, status: str) -> str:
    rate = done / elapsed if elapsed > 0 else float("inf")
    line = f"{desc}: {done}{f'/{total}' if total else ''} {unit}, {rate:.1f} {unit}/s"
    if total and 0 < done < total:
        line += f", {(total - done) / rate:.0f} s left"
    return f"{line}, {status}" if status else line
