"""What all requests of one run share."""

from __future__ import annotations

import openai

from mechatlas.explain.llm.budget import Ledger, Reservation
from mechatlas.explain.llm.commits import GroupCommit, Statement
from mechatlas.explain.llm.failures import Unanswered
from mechatlas.explain.llm.pace import Halt
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.settings import Endpoint, LlmSettings
from mechatlas.explain.llm.store import ResponseStore

# How often a request that waits for others to be settled looks again.
LOOK_EVERY_SECONDS = 0.02


class Session:
    """Store, ledger and connections of a run that may send requests.

    Parameters
    ----------
    settings : LlmSettings
    store : ResponseStore
        Open for writing.

    Attributes
    ----------
    halt : Halt
    ledger : Ledger
    unanswered : list of Unanswered
        Requests given up after all attempts; the run goes on without them and fails in the end.
    """

    def __init__(self, settings: LlmSettings, store: ResponseStore) -> None:
        self.settings, self.store = settings, store
        self.halt = Halt()
        self.ledger = Ledger(store, settings.budget, settings.prices)
        self.unanswered: list[Unanswered] = []
        self._in_a_row = 0
        self._commits = GroupCommit(store.write)
        self._clients: dict[tuple[str, str], openai.AsyncOpenAI] = {}

    def client(self, endpoint: Endpoint) -> openai.AsyncOpenAI:
        """Return the client of an endpoint, which keeps its connections open between requests."""
        key = endpoint.api_key()
        known = (endpoint.base_url, key)
        if known not in self._clients:
            # Attempts are ours to count; the client insists on some key even where none is wanted.
            self._clients[known] = openai.AsyncOpenAI(
                base_url=endpoint.base_url,
                api_key=key or "none",
                max_retries=0,
                timeout=self.settings.timeout,
            )
        return self._clients[known]

    async def commit(self, *statements: Statement) -> None:
        """Return when the statements are on the disk."""
        await self._commits.commit(statements)

    async def reserve(self, request: Request) -> Reservation:
        """Reserve the budget of a request, on the disk; wait for others to be settled if that may help."""
        while (made := self.ledger.reserve(request)) is None:
            await self.halt.sleep(LOOK_EVERY_SECONDS)
        reservation, statement = made
        await self.commit(statement)
        return reservation

    def note_answer(self) -> None:
        """Count an answer, which ends a row of failures."""
        self._in_a_row = 0

    def give_up(self, request: Request, reason: object, attempts: int) -> Unanswered:
        """Count a request without an answer, and stop the run after too many in a row."""
        endpoint = request.endpoint
        times = "once" if attempts == 1 else f"{attempts} times"
        error = Unanswered(f"{endpoint.base_url} was asked {times} for {endpoint.model}: {reason}")
        self.unanswered.append(error)
        self._in_a_row += 1
        if self._in_a_row >= self.settings.breaker:
            self.halt.stop(
                Unanswered(f"{self._in_a_row} requests in a row failed (llm.breaker); {error}")
            )
        return error

    async def aclose(self) -> None:
        """Close connections and wait for the last write."""
        self._commits.close()
        for client in self._clients.values():
            await client.close()
