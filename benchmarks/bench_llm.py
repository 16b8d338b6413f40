"""The language model client against a server that answers every request after 200 ms, 32 requests at a time.

Such a server can answer 160 requests a second. Measured are

- the share of that which the client uses, with every reservation and every answer on the disk before it counts;
- its resident memory after 1,000 and after 10,000 requests of about 3 kB, which should be the same;
- what the disk costs: one durable commit, and how many requests share one.

The server runs in a process of its own, each measurement of the client as well. As both wait for a core where other
work keeps the machine busy, a bare client runs right before each measurement: 32 connections that write the same bytes
and read the answers, with no library, no store and no budget. What it reaches is what this machine allows just then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TESTS = Path(__file__).resolve().parents[1] / "tests"
DELAY, CONCURRENCY = 0.2, 32
CAPACITY = CONCURRENCY / DELAY
WORDS = "word " * 600


@contextmanager
def server() -> Iterator[str]:
    """Run the scripted server in a process; yield its address."""
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "llm_server.py"), "--delay", str(DELAY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def resident_mb() -> float:
    """Return this process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """Return the most memory that was resident in this process (getrusage would count its parent's as well)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


async def bare(address: str, count: int) -> float:
    """Return the requests per second of connections that do nothing but write and read."""
    parts = urlsplit(address)
    content = json.dumps({"model": "m", "messages": [{"role": "user", "content": WORDS}]}).encode()
    head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
    message = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    async def connection(requests: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for _ in range(requests):
            writer.write(message)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length:")[1].split()[0])
            await reader.readexactly(length)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(connection(count // CONCURRENCY) for _ in range(CONCURRENCY)))
    return count // CONCURRENCY * CONCURRENCY / (time.perf_counter() - start)


def client(address: str, count: int) -> dict[str, Any]:
    """Send ``count`` requests and measure; run in a process of its own."""
    sys.path.insert(0, str(TESTS))
    from llm_server import endpoint_config, llm_config

    from mechatlas.explain.llm.client import run_units
    from mechatlas.explain.llm.requests import Request
    from mechatlas.explain.llm.settings import endpoint_from, llm_settings_from

    endpoint = endpoint_from(endpoint_config(address))
    memory: list[tuple[int, float]] = []

    def work(number: int) -> Callable[..., Awaitable[int]]:
        async def ask_one(ask: Any) -> int:
            messages = ({"role": "user", "content": f"{number} {WORDS}"},)
            answer = await ask(Request(endpoint, messages, None, "bench"))
            if number % 500 == 0:
                memory.append((number, resident_mb()))
            return len(answer.text)

        return ask_one

    with tempfile.TemporaryDirectory() as folder:
        config = llm_config(Path(folder) / "responses.sqlite", concurrency=CONCURRENCY)
        settings = llm_settings_from(config)
        wall, cpu = time.perf_counter(), time.process_time()
        results = run_units(settings, (work(n) for n in range(count)), "bench", count)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = settings.store.stat().st_size
    assert len(results) == count
    return {
        "requests": count,
        "wall_s": wall,
        "requests_per_s": count / wall,
        "share": count / wall / CAPACITY,
        "cpu_ms_per_request": 1e3 * cpu / count,
        "peak_mb": peak_mb(),
        "memory_mb": dict(memory),
        "store_mb": size / 1e6,
    }


def commits(count: int) -> dict[str, float]:
    """Measure durable commits of a 5 kB row: one after another, and 32 tasks at a time in groups."""
    from mechatlas.explain.llm.commits import GroupCommit
    from mechatlas.explain.llm.store import ResponseStore

    insert = "INSERT INTO batches VALUES (?, ?, 'x', 'y')"

    async def grouped(store: ResponseStore) -> int:
        written = 0

        def write(statements: Any) -> None:
            nonlocal written
            written += 1
            store.write(statements)

        group = GroupCommit(write)

        async def one(start: int) -> None:
            for number in range(start, count, CONCURRENCY):
                await group.commit([(insert, (f"group {number}", "z" * 5000))])

        await asyncio.gather(*(one(start) for start in range(CONCURRENCY)))
        group.close()
        return written

    with tempfile.TemporaryDirectory() as folder, ResponseStore(Path(folder) / "s.sqlite") as store:
        start = time.perf_counter()
        for number in range(count):
            store.write([(insert, (f"single {number}", "z" * 5000))])
        single = time.perf_counter() - start
        start = time.perf_counter()
        written = asyncio.run(grouped(store))
        together = time.perf_counter() - start
    return {
        "single_ms": 1e3 * single / count,
        "grouped_ms": 1e3 * together / count,
        "rows_per_commit": count / written,
    }


def run(quick: bool) -> dict[str, Any]:
    """Measure everything, each number of requests in a process of its own."""
    counts = (200, 1000) if quick else (1000, 10_000)
    runs = []
    with server() as address:
        for count in counts:
            reached = asyncio.run(bare(address, counts[0]))
            command = [sys.executable, __file__, "--client", address, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append({**json.loads(done.stdout), "bare_per_s": reached})
    return {
        "capacity_per_s": CAPACITY,
        "load_average": os.getloadavg()[0],
        "runs": runs,
        "commits": commits(200 if quick else 1000),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [
        f"language model client, {CONCURRENCY} at a time, answers after {DELAY * 1e3:.0f} ms, "
        f"load {result['load_average']:.1f} on {os.cpu_count()} cores",
        "requests   per s  share  bare per s  CPU ms each  peak MB  store MB",
    ]
    for r in result["runs"]:
        lines.append(
            f"{r['requests']:>8} {r['requests_per_s']:>7.1f} {r['share']:>6.3f} {r['bare_per_s']:>11.1f} "
            f"{r['cpu_ms_per_request']:>12.2f} {r['peak_mb']:>8.1f} {r['store_mb']:>9.1f}"
        )
    c = result["commits"]
    lines.append(
        f"durable commits: {c['single_ms']:.2f} ms each alone, {c['grouped_ms']:.2f} ms in groups of "
        f"{c['rows_per_commit']:.1f}"
    )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", nargs=2, required=True, metavar=("ADDRESS", "COUNT"))
    given = parser.parse_args().client
    print(json.dumps(client(given[0], int(given[1]))))
