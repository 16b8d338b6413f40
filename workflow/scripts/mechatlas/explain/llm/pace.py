"""When the next request may be sent."""

from __future__ import annotations

import asyncio
import logging
import time

from mechatlas.explain.llm.failures import Stopped
from mechatlas.explain.llm.requests import Request, estimate_tokens

logger = logging.getLogger("mechatlas")

LONG_PAUSE_SECONDS = 30.0


class Halt:
    """The end of a run before its time: the first reason for it, and waits that it cuts short."""

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self._event = asyncio.Event()

    def stop(self, reason: BaseException) -> None:
        """Let nothing more be sent; the first reason is the one that counts."""
        self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        """Raise `Stopped` if the run is ending."""
        if self._event.is_set():
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise `Stopped` as soon as the run is ending."""
        self.check()
        if seconds > 0:
            try:
                await asyncio.wait_for(self._event.wait(), seconds)
            except TimeoutError:
                return
            raise Stopped


class Pace:
    """Rate limits, and the pause that a busy endpoint asks of everyone.

    Requests are spaced evenly rather than let through in bursts, so that no window of a minute holds more than the
    limits, wherever the provider lets its minute begin.
    """

    def __init__(
        self, requests_per_minute: int | None, tokens_per_minute: int | None, halt: Halt
    ) -> None:
        self.limits = (requests_per_minute, tokens_per_minute)
        self.halt = halt
        self.next_turn = 0.0
        self.paused_until = 0.0
        self._line = asyncio.Lock()

    async def turn(self, request: Request) -> None:
        """Return when this request may be sent by the rate limits, which count it from then on."""
        requests, tokens = self.limits
        gap = 60 / requests if requests else 0.0
        if tokens:
            gap = max(gap, 60 * (estimate_tokens(request) + request.answer_limit) / tokens)
        async with self._line:
            start = max(self.next_turn, time.monotonic())
            await self.halt.sleep(start - time.monotonic())
            # A late turn is made up for by the next, but a busy machine's delay must not turn into a burst.
            self.next_turn = max(start, time.monotonic() - gap) + gap

    def pause(self, seconds: float) -> None:
        """Let nothing be sent for some time."""
        until = time.monotonic() + seconds
        if seconds >= LONG_PAUSE_SECONDS and until > self.paused_until + 1:
            logger.info("the endpoint is busy and asks to wait %.0f s", seconds)
        self.paused_until = max(self.paused_until, until)

    async def pass_pause(self) -> None:
        """Return when no pause is left."""
        await self.halt.sleep(0)
        while (left := self.paused_until - time.monotonic()) > 0:
            await self.halt.sleep(left)
