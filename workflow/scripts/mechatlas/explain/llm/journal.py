"""Requests in batches, as the store keeps them until their answers are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mechatlas.explain.llm.budget import Cost, Reservation
from mechatlas.explain.llm.commits import Statement
from mechatlas.explain.llm.requests import Request
from mechatlas.explain.llm.store import ResponseStore, request_record

PAGE = "/v1/chat/completions"
# OpenAI allows 50,000 requests and 200 MB in a batch.
MOST_REQUESTS, MOST_BYTES = 50_000, 180_000_000


@dataclass(frozen=True)
class Member:
    """A request in a batch, as the journal has it: it outlives the process that asked."""

    record: tuple[Any, ...]
    reservation: Reservation
    estimate: int

    @property
    def key(self) -> str:
        """The request's key, which the endpoint gives back with the answer."""
        return self.record[0]

    def entry(self, batch: str) -> Statement:
        """Return the statement that journals it."""
        row = (batch, *self.record, self.reservation.id, self.estimate)
        return f"INSERT INTO batch_requests VALUES ({', '.join('?' * len(row))})", row

    def line(self) -> str:
        """Return its line in the file that is sent."""
        head = json.dumps({"custom_id": self.key, "method": "POST", "url": PAGE})
        return f'{head[:-1]}, "body": {self.record[5]}}}\n'


def members_of(store: ResponseStore, name: str) -> Iterator[Member]:
    """Yield the requests of a journalled batch."""
    for *record, reservation, estimate, tokens, price in store.rows(
        "SELECT b.key, b.provider, b.model, b.prompt_version, b.sample, b.request, b.reservation, "
        "b.estimate, coalesce(r.tokens, 0), coalesce(r.price, 0) "
        "FROM batch_requests b LEFT JOIN reservations r ON r.id = b.reservation WHERE b.batch = ?",
        (name,),
    ):
        held = Reservation(reservation, record[0], record[2], Cost(price, tokens, 1))
        yield Member(tuple(record), held, estimate)


def split(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Split requests into batches: one endpoint and model each, and no larger than allowed."""
    groups: dict[tuple[str, str | None, str], list[Request]] = {}
    for request in requests:
        endpoint = request.endpoint
        kind = (endpoint.base_url, endpoint.api_key_env, endpoint.model)
        groups.setdefault(kind, []).append(request)
    for group in groups.values():
        chunk: list[Request] = []
        size = 0
        for request in group:
            length = len(request_record(request)[5]) + 200
            if chunk and (len(chunk) == MOST_REQUESTS or size + length > MOST_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(request)
            size += length
        yield chunk
