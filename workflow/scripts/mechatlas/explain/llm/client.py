"""Runs works that ask a model, many at a time, never paying for an answer twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sized
from typing import Any, TypeVar

from mechatlas.explain.llm.batch import BatchSender
from mechatlas.explain.llm.failures import Stopped, Unanswered
from mechatlas.explain.llm.reporter import Reporter
from mechatlas.explain.llm.requests import Answer, Request
from mechatlas.explain.llm.sender import AHEAD, Sender
from mechatlas.explain.llm.session import Session
from mechatlas.explain.llm.settings import LlmSettings
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError

T = TypeVar("T")
Ask = Callable[[Request], Awaitable[Answer]]
Work = Callable[[Ask], Awaitable[T]]


def run_units(
    settings: LlmSettings, works: Iterable[Work[T]], desc: str, total: int | None = None
) -> list[T]:
    """Run works that ask a model; return their results in the order of the works.

    Parameters
    ----------
    settings : LlmSettings
        With mode ``replay`` nothing is sent, and the works run one after another.
    works : iterable of async callable
        Each takes ``ask``, which turns a `Request` into an `Answer` and may be awaited many times at once. They are
        consumed as places become free (all at once with ``settings.batch``), so that memory stays bounded. They let
        every exception of ``ask`` through. Their results depend on nothing but answers, never on time.
    desc : str
        What is being done, for the progress line.
    total : int, optional
        Number of works, if ``works`` has no length.

    Raises
    ------
    UserError
        In one sentence, if the endpoint refuses, a cap is reached, requests stay without an answer, or an answer is
        missing from a replayed store. Every answer that came is in the store, and a further run goes on from there.
    """
    if total is None and isinstance(works, Sized):
        total = len(works)
    reporter = Reporter(desc, total)
    if settings.mode == "replay":
        with ResponseStore(settings.store, read_only=True) as store:
            return asyncio.run(_replay(store, works, reporter))
    with ResponseStore(settings.store) as store:
        return asyncio.run(_live(settings, store, works, reporter))


async def _replay(store: ResponseStore, works: Iterable[Work[T]], reporter: Reporter) -> list[T]:
    results = []
    for number, work in enumerate(works, 1):
        # Bound now: `number` moves on before a stray task of this work might ask.
        async def ask(request: Request, number: int = number) -> Answer:
            answer = store.get(request.key)
            if answer is None:
                raise UserError(
                    f"llm.mode is replay, but {store.path} lacks an answer: {reporter.desc}, unit {number}, model "
                    f"{request.endpoint.model}, prompt {request.prompt_version}, sample {request.sample}, "
                    f"key {request.key}; run with llm.mode live, or merge a store that has it"
                )
            reporter.stored()
            return answer

        results.append(await work(ask))
        reporter.done()
    reporter.close()
    return results


async def _live(
    settings: LlmSettings, store: ResponseStore, works: Iterable[Work[T]], reporter: Reporter
) -> list[T]:
    session = Session(settings, store)
    desk = Desk(session, reporter)
    limit = None if settings.batch else AHEAD * settings.concurrency
    try:
        results = await _run_works(desk, works, limit)
    except asyncio.CancelledError as error:
        session.halt.stop(error)
        raise
    finally:
        # Requests under way may be billed already: their answers are waited for and kept, whatever happened.
        await desk.finish()
        await session.aclose()
        reporter.close()
    if session.halt.reason is not None:
        raise session.halt.reason
    if session.unanswered:
        count = len(session.unanswered)
        what = "1 request" if count == 1 else f"{count} requests"
        raise UserError(
            f"{what} stayed without an answer; {session.unanswered[-1]}; run again to go on"
        )
    return results


class Desk:
    """Takes requests from works: gives stored answers, and asks once what several works ask at a time."""

    def __init__(self, session: Session, reporter: Reporter) -> None:
        self.session, self.reporter = session, reporter
        self.batches = BatchSender(session)
        self.fetch = self.batches.fetch if session.settings.batch else Sender(session).fetch
        self.under_way: dict[str, asyncio.Task[Answer]] = {}

    async def ask(self, request: Request) -> Answer:
        """Return the answer to a request, from the store if it is there."""
        if (task := self.under_way.get(request.key)) is None:
            if (answer := self.session.store.get(request.key)) is not None:
                self.reporter.stored()
                return answer
            task = asyncio.create_task(self._fetch(request))
            self.under_way[request.key] = task
            task.add_done_callback(lambda task: self._forget(request.key, task))
        # One work's end must not take the answer from the others.
        return await asyncio.shield(task)

    async def _fetch(self, request: Request) -> Answer:
        self.session.halt.check()
        answer = await self.batches.collected(request) or await self.fetch(request)
        self.reporter.answered(self.session.ledger)
        return answer

    def _forget(self, key: str, task: asyncio.Task[Answer]) -> None:
        del self.under_way[key]
        self.note_end(task)

    def note_end(self, task: asyncio.Task[Any]) -> None:
        """Stop the run if a task ended in an error that concerns all."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Stopped | Unanswered):
            self.session.halt.stop(error)

    async def finish(self) -> None:
        """Wait for the requests under way."""
        while self.under_way:
            await asyncio.wait(list(self.under_way.values()))


async def _run_works(desk: Desk, works: Iterable[Work[T]], limit: int | None) -> list[T]:
    """Run works, at most ``limit`` at a time; leave off when the run is to end."""
    results: dict[int, T] = {}
    if limit is None:
        works = list(works)
        limit = len(works)
    # One iterator for all runners: each takes the next work when it is free.
    numbered = enumerate(works)

    async def run() -> None:
        for index, work in numbered:
            try:
                results[index] = await work(desk.ask)
                desk.reporter.done()
            except (Stopped, Unanswered):
                pass  # counted where it was raised
            if desk.session.halt.reason is not None:
                return

    runners = [asyncio.create_task(run()) for _ in range(limit)]
    for runner in runners:
        runner.add_done_callback(desk.note_end)
    if runners:
        await asyncio.wait(runners)
    return [results[index] for index in sorted(results)]
