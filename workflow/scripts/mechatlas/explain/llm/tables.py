"""The tables of a response store, and how its file is opened."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

VERSION = 1
SCHEMA = f"""
PRAGMA user_version={VERSION};
CREATE TABLE answers (
  key TEXT PRIMARY KEY, provider TEXT, model TEXT, prompt_version TEXT, sample INTEGER,
  request TEXT, response TEXT,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER, price REAL,
  paid INTEGER, answered_at TEXT
);
CREATE TABLE reservations (
  id TEXT PRIMARY KEY, key TEXT, model TEXT, tokens INTEGER, price REAL,
  state TEXT, batch TEXT, note TEXT, reserved_at TEXT
);
CREATE TABLE batches (name TEXT PRIMARY KEY, id TEXT, base_url TEXT, started_at TEXT);
CREATE TABLE batch_requests (
  batch TEXT, key TEXT, provider TEXT, model TEXT, prompt_version TEXT, sample INTEGER, request TEXT,
  reservation TEXT, estimate INTEGER, PRIMARY KEY (batch, key)
);
"""
# ``paid`` is 1 where this store's owner paid; answers merged from elsewhere count for no budget.
COLUMNS = (
    "key, provider, model, prompt_version, sample, request, response, "
    "prompt_tokens, cached_tokens, completion_tokens, price, paid, answered_at"
)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open a store for writing, with its tables; what is committed there is on the disk."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a store for reading.

    Raises
    ------
    sqlite3.Error
        If it is no store, or one of another format.
    """
    address = path.absolute().as_uri()
    db = sqlite3.connect(f"{address}?mode=ro", uri=True, check_same_thread=False)
    try:
        version = _version(db)
    except sqlite3.OperationalError:
        # What a killed process left needs a log beside it, which a folder without write permission does not get;
        # nobody else writes there either.
        db.close()
        db = sqlite3.connect(f"{address}?immutable=1", uri=True, check_same_thread=False)
        version = _version(db)
    if version != VERSION:
        raise sqlite3.DatabaseError(
            f"it has format {version}, this version of mechatlas reads {VERSION}"
        )
    return db


def now() -> str:
    """Return the time in UTC, to the second, as text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(db: sqlite3.Connection) -> int:
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db.execute("PRAGMA user_version").fetchone()[0]
