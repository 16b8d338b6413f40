"""One request at a time, as often as it takes."""

from __future__ import annotations

import asyncio
import json
import logging

import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from mechatlas.explain.llm.budget import Reservation
from mechatlas.explain.llm.failures import (
    Fatal,
    Stopped,
    Transient,
    error_code,
    explain_failure,
    redact,
)
from mechatlas.explain.llm.pace import Pace
from mechatlas.explain.llm.requests import (
    Answer,
    Request,
    UnusableAnswer,
    estimate_tokens,
    read_answer,
    read_usage,
)
from mechatlas.explain.llm.session import Session
from mechatlas.explain.llm.store import keep, request_record

logger = logging.getLogger("mechatlas")

# Requests admitted beyond those under way: their reservations reach the disk while they wait for a place.
AHEAD = 2
BACKOFF = wait_random_exponential(multiplier=0.5, max=60)


class Sender:
    """Sends requests one by one, at most ``settings.concurrency`` at a time, and keeps the answers.

    An attempt that fails for overload, a server error, a time-out or a lost connection is repeated after a random
    time that doubles on average, on top of what the endpoint asks for. A refusal for any other reason stops the run.
    """

    def __init__(self, session: Session) -> None:
        settings = session.settings
        self.session, self.attempts = session, settings.retries + 1
        self.pace = Pace(settings.requests_per_minute, settings.tokens_per_minute, session.halt)
        self.admitted = asyncio.Semaphore(AHEAD * settings.concurrency)
        self.places = asyncio.Semaphore(settings.concurrency)

    async def fetch(self, request: Request) -> Answer:
        """Return the answer to a request, on the disk by then.

        Raises
        ------
        Stopped
            If the run ends first, which this request may be the cause of.
        Unanswered
            If all attempts failed.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(self.attempts),
            wait=_wait,
            sleep=self.session.halt.sleep,
            reraise=True,
        )
        try:
            async with self.admitted:
                return await retrying(self._attempt, request)
        except Transient as error:
            raise self.session.give_up(request, error, self.attempts) from error

    async def _attempt(self, request: Request) -> Answer:
        # Made here at the latest: it takes long the first time, and may find that there is no key.
        self.session.client(request.endpoint)
        await self.pace.turn(request)
        reservation = await self.session.reserve(request)
        try:
            async with self.places:
                await self.pace.pass_pause()
                response = await self._send(request)
            answer = await self._keep(request, response, reservation)
        except Transient as error:
            await self._count_failure(error, reservation)
            raise
        except (Stopped, Fatal):
            await self.session.commit(self.session.ledger.release(reservation))
            raise
        self.session.note_answer()
        return answer

    async def _send(self, request: Request) -> str:
        """Return the JSON text of the response, with the key (which no endpoint should echo) taken out."""
        client, key = self.session.client(request.endpoint), request.endpoint.api_key()
        failure: Transient | Fatal
        try:
            async with asyncio.timeout(self.session.settings.timeout):
                return redact(await post(client, request), key)
        except TimeoutError:
            failure = Transient("no answer in time", maybe_billed=True)
        except openai.APIError as error:
            if isinstance(error, openai.APIStatusError) and error_code(error) == "content_filter":
                return redact(json.dumps({"error": error.body}), key)
            failure = explain_failure(error, request, key)
        if isinstance(failure, Fatal):
            self.session.halt.stop(failure)  # before the place is free for the next
        # Raised here, as an exception keeps what was being handled, and that text may hold the key.
        raise failure

    async def _keep(self, request: Request, response: str, reservation: Reservation) -> Answer:
        ledger, endpoint = self.session.ledger, request.endpoint
        price = ledger.prices.get(endpoint.model)
        usage = read_usage(response, price, lambda: estimate_tokens(request))
        try:
            answer = read_answer(request.key, response, usage)
        except UnusableAnswer as error:
            raise Transient(str(error), maybe_billed=True, response=response) from error
        answered = keep(request_record(request), response, usage)
        await self.session.commit(answered, ledger.settle(reservation, usage))
        return answer

    async def _count_failure(self, error: Transient, reservation: Reservation) -> None:
        logger.debug("attempt for %s failed: %s", reservation.key, error)
        if error.busy:
            self.pace.pause(error.wait)
        ledger = self.session.ledger
        if error.maybe_billed:
            end = ledger.lose(reservation, f"{error}\n{error.response}".strip())
        else:
            end = ledger.release(reservation)
        await self.session.commit(end)


async def post(client: openai.AsyncOpenAI, request: Request) -> str:
    """Send a request and return the response's body."""
    # By the client's way for pages that it does not know, which takes parameters and answers as they are: they are
    # stored as such, and checking them against its models would cost as much as all the rest.
    return await client.post(
        "/chat/completions",
        body=request.body(),
        cast_to=str,
        # The content's own hash names it to providers that recognise a repeated request.
        options={"headers": {"Idempotency-Key": request.key}},
    )


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, Transient) else 0.0
    return asked + BACKOFF(state)
