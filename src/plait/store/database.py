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
        run = self._db.execute
        encode = msgspec.msgpack.encode
        for commit in commits:
            for row in _rows(commit):
                run("REPLACE INTO items VALUES (?, ?, ?, ?, ?)", row)
            self._db.executemany("DELETE FROM items WHERE key=?", [(c.item.key,) for c in commit.changes if c.kind == "delete"])
            if commit.changes:
                run("INSERT INTO log VALUES (?, ?)", (commit.revision, encode(commit.changes)))
            self._db.executemany("REPLACE INTO leases VALUES (?, ?)", commit.granted)
            self._db.executemany("DELETE FROM leases WHERE id=?", [(lease,) for lease in commit.ended])
        run("REPLACE INTO meta VALUES ('revision', ?)", (commits[-1].revision,))
        run("DELETE FROM log WHERE revision<=?", (floor,))

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


def _rows(commit: Commit) -> Iterator[tuple[str, bytes, int, int, int]]:
    for change in commit.changes:
        if change.kind == "put":
            item = change.item
            yield item.key, item.value, item.create_revision, item.mod_revision, item.lease
