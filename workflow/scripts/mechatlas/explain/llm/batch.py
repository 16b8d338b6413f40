"""Requests by way of the Batch API: cheaper, answered within a day, collected by whichever run comes next."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import openai
from openai.types import Batch

from mechatlas.explain.llm.budget import BudgetReached
from mechatlas.explain.llm.commits import Statement
from mechatlas.explain.llm.failures import Fatal, Stopped, explain_failure, redact
from mechatlas.explain.llm.journal import PAGE, Member, members_of, split
from mechatlas.explain.llm.requests import (
    Answer,
    Request,
    UnusableAnswer,
    estimate_tokens,
    is_content_filter,
    read_answer,
    read_usage,
)
from mechatlas.explain.llm.session import Session
from mechatlas.explain.llm.store import keep, request_record
from mechatlas.explain.llm.tables import now
from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")

# The name of a batch goes along as metadata, so that one whose submission was cut short can be recognised.
LABEL = "mechatlas"
# A batch goes out when no work has asked for this long: then all of them wait for answers.
QUIET_SECONDS = 0.5
COMMIT_EVERY = 1000
ENDED = ("completed", "failed", "expired", "cancelled")

Failures = dict[str, str]
Waiting = tuple[Request, asyncio.Future[asyncio.Task[Failures]]]


class BatchSender:
    """Gathers requests until nothing else can be done, sends them as a batch and waits for it.

    Batches are journalled in the store before they are submitted. A run that was killed at whatever point is
    continued by the next: a request in a batch under way is not sent again, its batch is collected.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.asked = 0
        self.waiting: dict[str, Waiting] = {}
        self.flushing: asyncio.Task[None] | None = None
        self.running: dict[str, asyncio.Task[Failures]] = {}
        query = "SELECT key, batch FROM batch_requests"
        self.journalled: dict[str, str] = dict(session.store.rows(query))  # type: ignore[arg-type]

    async def collected(self, request: Request) -> Answer | None:
        """Return the answer from a batch of an earlier run, once that is there; None if no batch has the request."""
        if (name := self.journalled.get(request.key)) is None:
            return None
        await asyncio.shield(self._resumed(name, request))
        return self.session.store.get(request.key)

    async def fetch(self, request: Request) -> Answer:
        """Return the answer to a request, on the disk by then (see `sender.Sender.fetch`)."""
        failures = await asyncio.shield(await self._placed(request))
        answer = self.session.store.get(request.key)
        if answer is None:
            raise self.session.give_up(request, failures[request.key], 1)
        self.session.note_answer()
        return answer

    def _resumed(self, name: str, request: Request) -> asyncio.Task[Failures]:
        """Return the task that collects a batch of an earlier run."""
        if name not in self.running:
            self.running[name] = asyncio.create_task(self._collect_old(name, request))
        return self.running[name]

    async def _placed(self, request: Request) -> asyncio.Task[Failures]:
        """Return the task of the batch that a request goes out in, once that is settled."""
        placed = asyncio.get_running_loop().create_future()
        self.waiting[request.key] = (request, placed)
        self.asked += 1
        if self.flushing is None or self.flushing.done():
            self.flushing = asyncio.create_task(self._flush())
        return await placed

    async def _flush(self) -> None:
        group: dict[str, Waiting] = {}
        try:
            while self.waiting:
                await self._quiet()
                group, self.waiting = self.waiting, {}
                for chunk in split(request for request, _ in group.values()):
                    await self._send_chunk(chunk, group)
        except (Stopped, UserError) as error:
            for _, placed in [*group.values(), *self.waiting.values()]:
                if not placed.done():
                    placed.set_exception(error)
            self.waiting.clear()

    async def _quiet(self) -> None:
        seen = None
        while seen != self.asked:
            seen = self.asked
            await self.session.halt.sleep(QUIET_SECONDS)

    async def _send_chunk(self, chunk: list[Request], group: Mapping[str, Waiting]) -> None:
        """Start a batch of what the budget admits; keep the rest until a batch has been settled."""
        name = secrets.token_hex(16)
        members, statements, refusal = self._admit(name, chunk)
        for request in chunk[len(members) :]:
            placed = group[request.key][1]
            if refusal is not None and not self.session.ledger.under_way:
                raise refusal
            self.waiting[request.key] = (request, placed)
        if members:
            start = "INSERT INTO batches VALUES (?, NULL, ?, ?)"
            address = chunk[0].endpoint.base_url
            await self.session.commit((start, (name, address, now())), *statements)
            task = asyncio.create_task(self._run(name, chunk[0], members))
            self.running[name] = task
            for request in chunk[: len(members)]:
                group[request.key][1].set_result(task)
        if len(members) < len(chunk):
            await asyncio.wait(self.running.values(), return_when=asyncio.FIRST_COMPLETED)

    def _admit(
        self, name: str, chunk: Sequence[Request]
    ) -> tuple[list[Member], list[Statement], BudgetReached | None]:
        """Reserve requests in their order for as long as the budget admits them."""
        members: list[Member] = []
        statements: list[Statement] = []
        share = self.session.settings.batch_price
        for request in chunk:
            try:
                made = self.session.ledger.reserve(request, batch=name, share=share)
            except BudgetReached as error:
                return members, statements, error
            if made is None:
                break
            reservation, statement = made
            member = Member(request_record(request), reservation, estimate_tokens(request))
            members.append(member)
            statements += [statement, member.entry(name)]
        return members, statements, None

    async def _run(self, name: str, request: Request, members: list[Member]) -> Failures:
        client, key = self.session.client(request.endpoint), request.endpoint.api_key()
        try:
            batch = await self._submit(client, name, members)
            return await self._collect(client, name, batch, members, key)
        except openai.APIError as error:
            raise self._interrupted(error, request, len(members)) from None
        finally:
            del self.running[name]

    async def _collect_old(self, name: str, request: Request) -> Failures:
        client, key = self.session.client(request.endpoint), request.endpoint.api_key()
        members = list(members_of(self.session.store, name))
        number = next(self.session.store.rows("SELECT id FROM batches WHERE name = ?", (name,)))[0]
        ledger = self.session.ledger
        try:
            batch = await (client.batches.retrieve(number) if number else _find(client, name))
            if batch is not None:
                return await self._collect(client, name, batch, members, key)
            logger.info(
                "a batch of %d requests was never submitted; they are asked again", len(members)
            )
            await self._end(name, [ledger.release(m.reservation) for m in members])
        except openai.NotFoundError:
            logger.warning(
                "batch %s is gone; its %d requests are asked again", number, len(members)
            )
            note = f"batch {number} is gone"
            await self._end(name, [ledger.lose(m.reservation, note) for m in members])
        except openai.APIError as error:
            raise self._interrupted(error, request, len(members)) from None
        return {}

    async def _submit(self, client: openai.AsyncOpenAI, name: str, members: list[Member]) -> Batch:
        patient = client.with_options(max_retries=self.session.settings.retries)
        content = "".join(member.line() for member in members).encode()
        file = await patient.files.create(file=("batch.jsonl", content), purpose="batch")
        batch = None
        try:
            # Not repeated by itself: a lost reply may mean that the batch runs, and will be paid.
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint=PAGE,
                completion_window="24h",
                metadata={LABEL: name},
            )
        except openai.APIConnectionError:
            batch = await _find(patient, name)
            if batch is None:
                raise
        await self.session.commit(("UPDATE batches SET id = ? WHERE name = ?", (batch.id, name)))
        return batch

    async def _collect(
        self, client: openai.AsyncOpenAI, name: str, batch: Batch, members: list[Member], key: str
    ) -> Failures:
        patient = client.with_options(max_retries=self.session.settings.retries)
        logger.info(
            "batch %s of %d requests is under way; this run may be ended, the next one collects it",
            batch.id, len(members),
        )  # fmt: skip
        while batch.status not in ENDED:
            await self.session.halt.sleep(self.session.settings.batch_poll_seconds)
            batch = await patient.batches.retrieve(batch.id)
        if batch.status == "failed":
            await self._end(name, [self.session.ledger.release(m.reservation) for m in members])
            errors = (batch.errors and batch.errors.data) or []
            raise Fatal(
                f"batch {batch.id} was refused: {redact(str(errors[0].message), key) if errors else '?'}"
            )
        open_members = {m.key: m for m in members if self.session.store.get(m.key) is None}
        failures: Failures = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            text = redact((await patient.files.content(file)).text, key)
            await self._keep_lines(text, open_members, failures)
        reason = f"batch {batch.id} is {batch.status}"
        failures = dict.fromkeys(open_members, reason) | failures
        rest = [self.session.ledger.release(m.reservation) for m in open_members.values()]
        await self._end(name, rest)
        return failures

    async def _keep_lines(
        self, text: str, open_members: dict[str, Member], failures: Failures
    ) -> None:
        """Store the answers of a result file, taking them out of ``open_members``."""
        statements: list[Statement] = []
        for entry in _entries(text):
            if (member := open_members.get(entry.get("custom_id", ""))) is None:
                continue
            try:
                statements += self._answer(member, entry)
                del open_members[member.key]
            except UnusableAnswer as error:
                failures[member.key] = str(error)
            if len(statements) >= COMMIT_EVERY:
                await self.session.commit(*statements)
                statements = []
        await self.session.commit(*statements)

    def _answer(self, member: Member, entry: Mapping[str, Any]) -> list[Statement]:
        body = (entry.get("response") or {}).get("body")
        response = json.dumps(body, ensure_ascii=False)
        answered = (entry.get("response") or {}).get("status_code") == 200
        if not answered and not is_content_filter(body):
            raise UnusableAnswer(f"refused: {json.dumps(entry.get('error') or body)[:200]}")
        price = self.session.ledger.prices.get(member.reservation.model)
        cheaper = price and price.times(self.session.settings.batch_price)
        usage = read_usage(response, cheaper, lambda: member.estimate)
        read_answer(member.key, response, usage)
        return [
            keep(member.record, response, usage),
            self.session.ledger.settle(member.reservation, usage),
        ]

    async def _end(self, name: str, statements: Iterable[Statement]) -> None:
        await self.session.commit(
            *statements,
            ("DELETE FROM batch_requests WHERE batch = ?", (name,)),
            ("DELETE FROM batches WHERE name = ?", (name,)),
        )
        self.journalled = {key: batch for key, batch in self.journalled.items() if batch != name}

    def _interrupted(self, error: openai.APIError, request: Request, count: int) -> Fatal:
        what = explain_failure(error, request, request.endpoint.api_key())
        if isinstance(what, Fatal):
            return what
        return Fatal(
            f"{request.endpoint.base_url} failed while a batch of {count} requests was under way ({what}); "
            "run again to collect it"
        )


def _entries(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a result file, leaving out what a broken transfer spoilt."""
    # Not splitlines, which also splits at separators that may stand within a JSON string.
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, Mapping):
            yield entry


async def _find(client: openai.AsyncOpenAI, name: str) -> Batch | None:
    """Return the batch of this name if it was submitted."""
    async for batch in client.batches.list(limit=100):
        if (batch.metadata or {}).get(LABEL) == name:
            return batch
    return None
