# SPDX-License-Identifier: Apache-2.0
"""The SQLite file of the embedded store: what is on disk, read once and written in batches.

Data in: batches of commits. Data out: rows, durable when `write` returns (WAL, synchronous=FULL: sqlite.org/pragma.html). Blocking;
one thread at a time. The file is held exclusively: a second process that opens it is refused.

Tables: `items` (the present), `log` (the commits of the bounded past, one row a revision), `leases` (id, ttl), `meta` (revision).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from plait.model.errors import Conflict, StoreUnavailable
from plait.store.api import Change, Item
from plait.store.state import FIRST_REVISION, Commit, History, State

VERSION = 1
"""`PRAGMA user_version`: the layout below."""
_SCHEMA = """
CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL, lease INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE log (revision INTEGER PRIMARY KEY, changes BLOB NOT NULL);
CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl REAL NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_PART_ROWS = (256, 64, 16, 4, 1)
"""Rows of one statement. SQLite takes 32,766 values in one."""
T = TypeVar("T")
_changes = msgspec.msgpack.Decoder(tuple[Change, ...])


class Database:
    """An open store file. Every method raises StoreUnavailable when the disk or the file fails."""

    def __init__(self, path: Path, history: int, history_bytes: int) -> None:
        """Open `path`, making it (mode 0600) and its tables if absent. Raises Conflict if another process holds it."""
        self.path = path
        self._history, self._history_bytes = history, history_bytes
        try:
            self._make(path)
            self._db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._db.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise Conflict(f"open store {path}: another process holds it; stop the other agent of this node first") from error
            raise self._failed("open", error) from error
        except sqlite3.Error as error:
            self._db.close()
            raise self._failed("open", error) from error

    @staticmethod
    def _make(path: Path) -> None:
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise sqlite3.DatabaseError(f"it has layout {version}, this version of plait knows up to {VERSION}")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        else:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")

    def load(self) -> tuple[State, History]:
        """Everything in the file."""
        try:
            return self._load()
        except (sqlite3.Error, msgspec.DecodeError, ValueError) as error:
            raise self._failed("read", error) from error

    def _load(self) -> tuple[State, History]:
        row = self._db.execute("SELECT value FROM meta WHERE name='revision'").fetchone()
        revision: int = row[0] if row else FIRST_REVISION
        items = [Item(*row) for row in self._db.execute("SELECT key, value, created, modified, lease FROM items")]
        leases = dict(self._db.execute("SELECT id, ttl FROM leases").fetchall())
        (oldest,) = self._db.execute("SELECT coalesce(min(revision), ?) FROM log", (revision + 1,)).fetchone()
        history = History(oldest - 1, self._history, self._history_bytes)
        for at, changes in self._db.execute("SELECT revision, changes FROM log ORDER BY revision"):
            history.append(Commit(at, _changes.decode(changes)))
        if history.head != revision:
            raise ValueError(f"its log ends at revision {history.head}, its state at {revision}")
        return State.load(revision, items, leases), history

    def write(self, commits: Sequence[Commit], floor: int) -> None:
        """Make `commits` durable, all or none, and drop the log up to revision `floor`."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write(commits, floor)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._failed("write", error) from error

    def _write(self, commits: Sequence[Commit], floor: int) -> None:
        """Few statements for many rows: after each the thread has to win the interpreter back from a busy event loop."""
        encode = msgspec.msgpack.encode
        items: dict[str, Change] = {}
        leases: dict[int, float | None] = {}
        for commit in commits:
            items.update((change.item.key, change) for change in commit.changes)
            leases.update(commit.granted)
            leases.update((lease, None) for lease in commit.ended)
        self._put("REPLACE INTO items VALUES", [_row(change.item) for change in items.values() if change.kind == "put"])
        self._delete("items", "key", [key for key, change in items.items() if change.kind == "delete"])
        self._put("INSERT INTO log VALUES", [(commit.revision, encode(commit.changes)) for commit in commits if commit.changes])
        self._put("REPLACE INTO leases VALUES", [(lease, ttl) for lease, ttl in leases.items() if ttl is not None])
        self._delete("leases", "id", [lease for lease, ttl in leases.items() if ttl is None])
        self._db.execute("REPLACE INTO meta VALUES ('revision', ?)", (commits[-1].revision,))
        self._db.execute("DELETE FROM log WHERE revision<=?", (floor,))

    def _put(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        for part in _parts(rows):
            row = f"({', '.join('?' * len(part[0]))})"
            self._db.execute(f"{statement} {', '.join([row] * len(part))}", [value for row in part for value in row])

    def _delete(self, table: str, column: str, values: Sequence[object]) -> None:
        for part in _parts(values):
            self._db.execute(f"DELETE FROM {table} WHERE {column} IN ({', '.join('?' * len(part))})", part)

    def close(self) -> None:
        """Checkpoint and close. Idempotent."""
        try:
            self._db.close()
        except sqlite3.Error as error:
            raise self._failed("close", error) from error

    def _failed(self, what: str, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"{what} store {self.path}: {error}; check the disk (space, permissions, health); if the file is damaged, "
            "stop the agent and put a copy of it back"
        )


def _row(item: Item) -> tuple[object, ...]:
    return item.key, item.value, item.create_revision, item.mod_revision, item.lease


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """`rows` in parts of few different lengths, so that few different statements are compiled and kept."""
    at = 0
    while at < len(rows):
        length = next(length for length in _PART_ROWS if length <= len(rows) - at)
        yield rows[at : at + length]
        at += length
