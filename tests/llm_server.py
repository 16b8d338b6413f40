"""A scripted, OpenAI-compatible server on loopback, for tests and benchmarks of everything that asks a model.

It speaks HTTP/1.1 with real sockets, so that the code under test runs unchanged down to the wire::

    def answer(call):                       # any str, Reply or Fault, from the request and its attempt
        return TOO_MANY if call.attempt == 0 else call.body["messages"][-1]["content"].upper()

    with LlmServer(answer) as server:
        ...  # use server.base_url, then look at server.chats(), server.answered(), server.repeated()

It serves ``/v1/models``, ``/v1/chat/completions``, ``/v1/files`` and ``/v1/batches``. Every request is recorded.
``python tests/llm_server.py --delay 0.2`` serves from a process of its own and prints its address.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import email.parser
import email.policy
import functools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SCHEMA = Path(__file__).resolve().parents[1] / "workflow" / "schemas" / "config.schema.yaml"
CHAT = "/v1/chat/completions"


@dataclass
class Call:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # parsed JSON, or bytes
    arrived: float  # time.monotonic()
    number: int  # how many requests for this path came before
    attempt: int = 0  # how many requests with the same content came before
    batch: str | None = None  # the batch that a chat completion came in
    status: int | None = None  # of the response; None while there is none, or if there never was
    answered: bool = False  # a `Reply` was handed to the socket, rather than a `Fault`

    @property
    def content(self) -> str:
        """What makes two requests the same: the body, and the sample that its key stands for."""
        return json.dumps([self.body, self.headers.get("idempotency-key")], sort_keys=True)


@dataclass(frozen=True)
class Reply:
    """An answer of the model. ``logprobs`` holds the top log-probabilities of each position."""

    text: str
    finish_reason: str = "stop"
    logprobs: Sequence[Mapping[str, float]] | None = None
    usage: Mapping[str, Any] | None = None  # None counts four bytes as one token
    refusal: str | None = None
    delay: float = 0.0
    hold: threading.Event | None = None  # answer when it is set


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong instead of an answer.

    ``cut`` ends the connection: "before" any byte of the response, or "within" its body.
    """

    status: int = 200
    body: bytes | Mapping[str, Any] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: str | None = None
    delay: float = 0.0


def failure(status: int, text: str, code: str | None = None, **headers: str) -> Fault:
    """Return a refusal in the form that OpenAI gives it; ``retry_after="1"`` becomes a header."""
    body = {"error": {"message": text, "type": "scripted", "code": code}}
    return Fault(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


TOO_MANY = failure(429, "slow down", "rate_limit_exceeded", retry_after="0.05")
SERVER_ERROR = failure(500, "something broke")
DROPPED = Fault(cut="before")
TRUNCATED = Fault(body=b'{"id": "chatcmpl-0", "choices": [{"index": 0, "mess', cut="within")
MALFORMED = Fault(body=b'{"id": "chatcmpl-0", "choices": [{"index": 0, "mess')

Answer = Callable[[Call], "str | Reply | Fault"]


def echo(call: Call) -> str:
    """Answer with the last message."""
    return call.body["messages"][-1]["content"]


class LlmServer:
    """The server, in a thread of its own while the ``with`` block lasts.

    Parameters
    ----------
    answer : callable
        What to answer to a chat completion, given its `Call`. It runs in the server's thread, one call at a time.
    models : sequence of str
        Names that ``/v1/models`` lists; None makes that page a 404.
    key : str, optional
        The only key that is accepted. A refusal echoes the key that was sent, as careless servers do.
    delay : float
        Seconds until any chat completion is answered.
    batch_polls : int
        How often a batch is still "in_progress" when it is looked at.
    record : bool
        Keep the calls. A long benchmark does without.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        models: Sequence[str] | None = ("scripted",),
        key: str | None = None,
        delay: float = 0.0,
        batch_polls: int = 1,
        record: bool = True,
        port: int = 0,
    ) -> None:
        self.answer, self.models, self.key, self.delay = answer, models, key, delay
        self.hold_batches = False  # start batches without ever saying so
        self.batch_polls, self.record, self.port = batch_polls, record, port
        self.lock = threading.Lock()
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls: Counter[str] = Counter()

    # What tests look at.

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def chats(self) -> list[Call]:
        """Return the chat completions asked for so far, those of batches included, in order of arrival."""
        with self.lock:
            return [call for call in self.calls if call.path == CHAT]

    def answered(self) -> list[Call]:
        """Return the chat completions that got their answer."""
        return [call for call in self.chats() if call.answered]

    def repeated(self) -> list[Call]:
        """Return the chat completions asked for although the same one had been answered before."""
        seen: set[str] = set()
        again = []
        for call in self.chats():
            if call.content in seen:
                again.append(call)
            if call.answered:
                seen.add(call.content)
        return again

    # The server itself.

    def __enter__(self) -> LlmServer:
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        if not ready.wait(10):
            raise RuntimeError("the scripted server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self.stopped.wait()
        server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while (call := await self._read(reader)) is not None:
                if not await self._respond(call, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Call | None:
        head = await reader.readline()
        if not head:
            return None
        method, path, _ = head.decode().split(" ", 2)
        headers = {}
        while (line := (await reader.readline()).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if "json" in headers.get("content-type", "") and raw else raw
        return self._recorded(method, path.partition("?")[0], headers, body)

    def _recorded(
        self, method: str, path: str, headers: dict[str, str], body: Any, batch: str | None = None
    ) -> Call:
        with self.lock:
            call = Call(method, path, headers, body, time.monotonic(), self.counts[path])
            call.batch = batch
            self.counts[path] += 1
            if self.record and path == CHAT:
                call.attempt = self.counts[call.content]
                self.counts[call.content] += 1
            if self.record:
                self.calls.append(call)
            return call

    async def _respond(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        sent = call.headers.get("authorization", "")
        if self.key is not None and sent != f"Bearer {self.key}":
            text = f"Incorrect API key provided: {sent.removeprefix('Bearer ')}"
            return await self._send(call, writer, failure(401, text, "invalid_api_key"))
        if call.path != CHAT:
            page = self._page(call)
            if self.hold_batches and call.path == "/v1/batches":
                await asyncio.sleep(3600)
            return await self._send(call, writer, page)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            made = self._made(call)
            answered = isinstance(made, Reply)
            if isinstance(made, Reply):
                await asyncio.sleep(self.delay + made.delay)
                while made.hold is not None and not made.hold.is_set():
                    await asyncio.sleep(0.005)
                made = Fault(200, completion(call.body, made))
            else:
                await asyncio.sleep(made.delay)
        finally:
            self.under_way -= 1
        return await self._send(call, writer, made, answered=answered)

    def _made(self, call: Call) -> Reply | Fault:
        made = self.answer(call)
        return Reply(made) if isinstance(made, str) else made

    async def _send(
        self, call: Call, writer: asyncio.StreamWriter, page: Fault, *, answered: bool = False
    ) -> bool:
        if page.cut == "before":
            return False
        body = page.body if isinstance(page.body, bytes) else json.dumps(page.body).encode()
        # A body that is cut off is announced as longer than what follows.
        length = len(body) + (100 if page.cut else 0)
        lines = [f"HTTP/1.1 {page.status} Scripted", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in page.headers.items()]
        lines += [f"Content-Length: {length}", "", ""]
        # Noted before the bytes leave: a client that has its answer must find it counted.
        call.status, call.answered = page.status, answered
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        return page.cut is None

    # Pages other than chat completions.

    def _page(self, call: Call) -> Fault:
        parts = call.path.removeprefix("/v1/").split("/")
        match call.method, parts:
            case "GET", ["models"] if self.models is not None:
                data = [{"id": name, "object": "model", "created": 0} for name in self.models]
                return Fault(200, {"object": "list", "data": data})
            case "POST", ["files"]:
                return self._store_file(call)
            case "GET", ["files", name, "content"] if name in self.files:
                return Fault(200, self.files[name])
            case "POST", ["batches"]:
                return Fault(200, self._start_batch(call.body))
            case "GET", ["batches"]:
                data = list(reversed(self.batches.values()))
                return Fault(200, {"object": "list", "data": data, "has_more": False})
            case "GET", ["batches", name] if name in self.batches:
                return Fault(200, self._look_at_batch(name))
            case _:
                return failure(404, f"no page {call.method} {call.path}")

    def _store_file(self, call: Call) -> Fault:
        header = f"Content-Type: {call.headers['content-type']}\r\n\r\n".encode()
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        parts = parser.parsebytes(header + call.body).iter_parts()
        fields = {p.get_param("name", header="content-disposition"): p for p in parts}
        return Fault(200, self._add_file(fields["file"].get_payload(decode=True)))

    def _add_file(self, content: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    def _start_batch(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "metadata": body.get("metadata"),
            "status": "in_progress",
            "created_at": int(time.time()),
        }
        return self.batches[name]

    def _look_at_batch(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        self.polls[name] += 1
        if batch["status"] == "in_progress" and self.polls[name] > self.batch_polls:
            self._finish_batch(batch)
        return batch

    def _finish_batch(self, batch: dict[str, Any]) -> None:
        results: list[dict[str, Any]] = []
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            entry = json.loads(line)
            headers = {"idempotency-key": entry["custom_id"]}
            call = self._recorded("POST", entry["url"], headers, entry["body"], batch["id"])
            made = self._made(call)
            call.status = made.status if isinstance(made, Fault) else 200
            call.answered = isinstance(made, Reply)
            body = made.body if isinstance(made, Fault) else completion(call.body, made)
            response = {"status_code": call.status, "request_id": "r", "body": body}
            results.append({"id": "x", "custom_id": entry["custom_id"], "response": response})
        # OpenAI does not keep the order of the lines, and reports failures in a file of their own.
        results.reverse()
        for status, key in ((True, "output_file_id"), (False, "error_file_id")):
            lines = [r for r in results if (r["response"]["status_code"] == 200) == status]
            if lines:
                text = "".join(json.dumps(line) + "\n" for line in lines)
                batch[key] = self._add_file(text.encode())["id"]
        batch["status"] = "completed"


def completion(body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """Return a chat completion in OpenAI's form."""
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    if reply.refusal is not None:
        message["content"] = None
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    if reply.logprobs is not None:
        choice["logprobs"] = {"content": [_position(top) for top in reply.logprobs]}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "usage": dict(reply.usage) if reply.usage is not None else usage(body, reply.text),
    }


def usage(body: Mapping[str, Any], text: str) -> dict[str, int]:
    """Count four bytes of the messages and of the answer as one token."""
    prompt = sum(len(message["content"].encode()) for message in body["messages"]) // 4 + 1
    answer = len(text.encode()) // 4 + 1
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _position(top: Mapping[str, float]) -> dict[str, Any]:
    entries = [
        {"token": token, "logprob": value, "bytes": list(token.encode())}
        for token, value in sorted(top.items(), key=lambda item: -item[1])
    ]
    return {**entries[0], "top_logprobs": entries}


# Settings for code under test: the configuration's defaults, changed as given.


def llm_config(store: str | Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration's ``llm`` section; waits between attempts are the client's own."""
    return {**_defaults("llm"), "store": str(store), **changes}


def endpoint_config(server: LlmServer | str, **changes: Any) -> dict[str, Any]:
    """Return the part of ``explain.openai`` that describes an endpoint, for this server and no key."""
    section = _defaults("explain", "openai")
    address = server if isinstance(server, str) else server.base_url
    return {**section, "base_url": address, "api_key_env": None, "model": "scripted", **changes}


def _defaults(*path: str) -> dict[str, Any]:
    schema = _schema()
    for name in path:
        schema = schema["properties"][name]
    return copy.deepcopy(_default(schema))


@functools.cache
def _schema() -> Mapping[str, Any]:
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def _default(schema: Mapping[str, Any]) -> Any:
    if "properties" not in schema:
        return schema["default"]
    return {name: _default(child) for name, child in schema["properties"].items()}


def main() -> None:
    """Serve until standard input closes, which it does when the parent ends in whatever way."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server on loopback.")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds until an answer")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    with LlmServer(delay=given.delay, port=given.port, record=False) as server:
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
