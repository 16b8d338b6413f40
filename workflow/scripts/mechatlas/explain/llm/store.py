"""Every answer ever paid for, kept in one SQLite file under the key of its request.

``python -m mechatlas.explain.llm.store`` merges and exports such files and says what they have cost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mechatlas.explain.llm.commits import Statement
from mechatlas.explain.llm.lock import FileLock
from mechatlas.explain.llm.requests import Answer, Request, Usage, read_answer
from mechatlas.explain.llm.tables import COLUMNS, SCHEMA, now, open_reader, open_writer
from mechatlas.io import UserError, atomic_path

INSERT = f"INSERT OR IGNORE INTO answers ({COLUMNS}) VALUES ({', '.join('?' * 13)})"


class ResponseStore:
    """The store of answers, of what is reserved for requests under way, and of batches under way.

    One process at a time writes; others wait (or are refused, see ``wait``). Reading needs no turn.

    Parameters
    ----------
    path : str or Path
    create : bool
        Make the file if there is none.
    read_only : bool
        Write nothing, not even a lock, so that a store in a folder without write permission can be replayed.
    wait : bool
        Wait for another process that uses the store, rather than raise.

    Raises
    ------
    UserError
        If there is no such file, it is no store, or it cannot be written.

    Notes
    -----
    Write-ahead log with ``synchronous=FULL``: what is committed survives a kill and a power cut. The file holds
    requests and responses as they were sent and received, but never a key.
    """

    def __init__(
        self, path: str | Path, create: bool = True, *, read_only: bool = False, wait: bool = True
    ) -> None:
        self.path = Path(path)
        if not self.path.exists() and (read_only or not create):
            raise UserError(
                f"there is no response store {self.path} (llm.store); "
                "correct the path, or run with llm.mode live to make it"
            )
        self._turn = threading.Lock()
        self._lock: FileLock | None = None
        try:
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = FileLock(self.path, wait=wait)
                self._writer = open_writer(self.path)
            self._reader = open_reader(self.path)
        except (sqlite3.Error, OSError) as error:
            self._unlock()
            raise UserError(
                f"cannot use {self.path} as response store (llm.store): {error}"
            ) from error

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, leaving nothing beside it but its lock."""
        self._reader.close()
        if self._lock is not None:
            # So that later readers find one plain file. Refused while another process reads, which does no harm.
            with contextlib.suppress(sqlite3.OperationalError):
                self._writer.execute("PRAGMA journal_mode=DELETE")
            self._writer.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def get(self, key: str) -> Answer | None:
        """Return the stored answer to the request with this key, or None."""
        row = self._reader.execute(
            "SELECT response, prompt_tokens, cached_tokens, completion_tokens, price "
            "FROM answers WHERE key = ?",
            (key,),
        ).fetchone()
        return None if row is None else read_answer(key, row[0], Usage(1, *row[1:]))

    def has(self, key: str) -> bool:
        """Return whether the request with this key has an answer."""
        return next(self.rows("SELECT 1 FROM answers WHERE key = ?", (key,)), None) is not None

    def put(self, request: Request, response: str, usage: Usage, *, paid: bool = True) -> None:
        """Keep a response; it is on the disk when this returns. An answer that is there already stays."""
        self.write([keep(request_record(request), response, usage, paid=paid)])

    def write(self, statements: Iterable[Statement]) -> None:
        """Execute statements as one transaction, on the disk when this returns. Any thread may call it.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        with self._turn:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                for sql, values in statements:
                    self._writer.execute(sql, values)
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise UserError(
                    f"cannot write {self.path} (llm.store): {error}; free the disk or choose another place"
                ) from error

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Iterate over the result of a query."""
        return iter(self._reader.execute(sql, values))

    def keys(self) -> list[str]:
        """Return the keys of all answers, sorted."""
        return [key for (key,) in self.rows("SELECT key FROM answers ORDER BY key")]

    def merge(self, other: ResponseStore) -> tuple[int, int]:
        """Take over the answers that another store has and this one lacks.

        Returns
        -------
        added, different : int
            Answers taken over, and requests that both have with different answers, where this store's stay.
        """
        before = len(self.keys())
        different = 0
        for key, response in other.rows("SELECT key, response FROM answers"):
            mine = next(self.rows("SELECT response FROM answers WHERE key = ?", (key,)), None)
            different += mine is not None and mine[0] != response
        self.write(_unpaid(other, other.keys()))
        return len(self.keys()) - before, different

    def export(self, path: str | Path, keys: Iterable[str] | None = None) -> int:
        """Write a new store with the answers of the given keys (all by default); return their number.

        The new store is one file with no log beside it, fit to be shipped: equal answers give equal bytes.

        Raises
        ------
        UserError
            If an answer is missing.
        """
        have = self.keys()
        wanted = have if keys is None else sorted(set(keys))
        if missing := sorted(set(wanted) - set(have)):
            raise UserError(
                f"{self.path} lacks {len(missing)} of the keys, the first is {missing[0]}"
            )
        with atomic_path(path) as temporary:
            db = sqlite3.connect(temporary)
            db.executescript(SCHEMA)
            with db:
                for statement in _unpaid(self, wanted):
                    db.execute(*statement)
            db.close()
        return len(wanted)


def request_record(request: Request) -> tuple[Any, ...]:
    """Return the first six columns of `answers`, which describe a request."""
    endpoint = request.endpoint
    body = json.dumps(request.body(), ensure_ascii=True, separators=(",", ":"))
    return (
        request.key,
        endpoint.provider,
        endpoint.model,
        request.prompt_version,
        request.sample,
        body,
    )


def keep(record: Sequence[Any], response: str, usage: Usage, *, paid: bool = True) -> Statement:
    """Return the statement that stores the response to the request of a `request_record`."""
    counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.price)
    return INSERT, (*record, response, *counts, int(paid), now())


def _unpaid(store: ResponseStore, keys: Iterable[str]) -> Iterator[Statement]:
    columns = COLUMNS.replace("paid", "0")
    for key in keys:
        for row in store.rows(f"SELECT {columns} FROM answers WHERE key = ?", (key,)):
            yield INSERT, row


def summary(store: ResponseStore) -> str:
    """Return a table of what the store holds and has cost, by model."""
    lines = [f"{'model':<32} {'answers':>8} {'paid':>8} {'tokens paid':>12} {'price':>12}"]
    for model, answers, paid, tokens, price, unknown in store.rows(
        "SELECT model, count(*), sum(paid), sum(paid * (prompt_tokens + completion_tokens)), "
        "sum(paid * price), sum(paid AND price IS NULL) FROM answers GROUP BY model ORDER BY model"
    ):
        cost = "unknown" if unknown else f"{price or 0:.4f}"
        lines.append(f"{model:<32} {answers:>8} {paid:>8} {tokens:>12} {cost:>12}")
    for model, state, count, tokens, price in store.rows(
        "SELECT model, state, count(*), sum(tokens), sum(price) FROM reservations "
        "GROUP BY model, state ORDER BY model, state"
    ):
        cost = "unknown" if price is None else f"at most {price:.4f}"
        what = "without an answer, maybe billed" if state == "lost" else "under way"
        lines.append(f"{model}: {count} requests {what}, at most {tokens} tokens, price {cost}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(prog="mechatlas.explain.llm.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="add the answers of other stores to a store")
    merge.add_argument("store", type=Path)
    merge.add_argument("others", type=Path, nargs="+")
    export = commands.add_parser(
        "export", help="write answers to a new store, one file fit to be shipped"
    )
    export.add_argument("store", type=Path)
    export.add_argument("target", type=Path)
    export.add_argument(
        "--keys", type=Path, help="file with one key a line; all answers by default"
    )
    usage = commands.add_parser("usage", help="say what a store holds and has cost")
    usage.add_argument("store", type=Path)
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(_run(given) + "\n")
    except UserError as error:
        sys.exit(f"error: {error}")


def _run(given: argparse.Namespace) -> str:
    if given.command == "merge":
        lines = []
        with ResponseStore(given.store, wait=False) as store:
            for path in given.others:
                with ResponseStore(path, read_only=True) as other:
                    added, different = store.merge(other)
                lines.append(
                    f"{path}: {added} answers added, {different} differ from ours and were left"
                )
        return "\n".join(lines)
    with ResponseStore(given.store, read_only=True) as store:
        if given.command == "usage":
            return summary(store)
        keys = None if given.keys is None else given.keys.read_text(encoding="utf-8").split()
        return f"{store.export(given.target, keys)} answers written to {given.target}"


if __name__ == "__main__":
    main()
