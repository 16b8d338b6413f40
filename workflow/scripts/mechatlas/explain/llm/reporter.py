"""Progress of a run that asks a model: units, requests, spend, remaining time."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from mechatlas.explain.llm.budget import Ledger
from mechatlas.io.progress import LOG_EVERY_SECONDS

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("mechatlas")


class Reporter:
    """A bar on a terminal, a line every few seconds and at the end elsewhere.

    Parameters
    ----------
    desc : str
    total : int or None
        Number of units, if it is known.
    """

    def __init__(self, desc: str, total: int | None) -> None:
        self.desc, self.total = desc, total
        self.units = self.from_store = self.asked = 0
        self.spend = ""
        self.start = self.last = time.monotonic()
        self.bar: tqdm | None = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=desc, unit="unit")

    def stored(self) -> None:
        """Count an answer from the store."""
        self.from_store += 1
        self._look()

    def answered(self, ledger: Ledger) -> None:
        """Count an answer that was asked for."""
        self.asked += 1
        spent = ledger.spent - ledger.before
        priced = f", spent {spent.money:.4f}" if ledger.prices else ""
        self.spend = f"{spent.tokens} tokens{priced}"
        self._look()

    def done(self) -> None:
        """Count a unit."""
        self.units += 1
        if self.bar is not None:
            self.bar.update()
        self._look()

    def close(self) -> None:
        """Give the last line."""
        if self.bar is not None:
            self.bar.set_postfix_str(self._requests(), refresh=False)
            self.bar.close()
        else:
            logger.info(self._line())

    def _look(self) -> None:
        if time.monotonic() - self.last < LOG_EVERY_SECONDS:
            return
        self.last = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(self._requests())
        else:
            logger.info(self._line())

    def _line(self) -> str:
        of = f"/{self.total}" if self.total else ""
        line = f"{self.desc}: {self.units}{of} units, {self._requests()}"
        if self.total and 0 < self.units < self.total:
            left = (self.total - self.units) * (time.monotonic() - self.start) / self.units
            line += f", {left:.0f} s left"
        return line

    def _requests(self) -> str:
        rate = self.asked / max(time.monotonic() - self.start, 1e-9)
        parts = [
            f"{self.asked} requests ({rate:.1f}/s)",
            f"{self.from_store} answers from the store",
        ]
        return ", ".join([*parts, self.spend] if self.spend else parts)
