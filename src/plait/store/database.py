# SPDX-License-Identifier: Apache-2.0
"""The SQLite file of the embedded store: what is on disk, read once and written in batches.

Data in: batches of commits. Data out: rows, durable when the file was synced after `write`: by `sync`, or by `kernel_sync`. Blocking; one
thread at a time. The file is held exclusively: a second process that opens it is refused.

SQLite (WAL, synchronous=NORMAL: sqlite.org/pragma.html) writes a commit into its WAL and leaves it to us to sync that: what FULL does more
than NORMAL. So a write costs the caller no wait for the disk. A WAL that ends in a torn commit is cut there by its checksums.

Tables: `log` (the commits of the bounded past, one row a batch), `items` and `leases` (the state after the batch that `meta` names). A
batch is one row of the log and so one statement, for which the thread needs the interpreter only at both ends: with a statement for every
few keys it had to win it back from a busy event loop each time. Every so often what the log has is folded into the state.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from plait.model.errors import Conflict, StoreUnavailable
from plait.store.api import Change, Item
from plait.store.files import sync_folder
from plait.store.kernelsync import KernelSync
from plait.store.state import FIRST_REVISION, Commit, History, State

log = logging.getLogger("plait.store")

VERSION = 2
"""`PRAGMA user_version`: the layout below. Layout 1 kept the state up to date and a row of the log for each revision."""
_SCHEMA = """
CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL, lease INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl REAL NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_LOG = "CREATE TABLE log (batch INTEGER PRIMARY KEY, revision INTEGER NOT NULL, commits BLOB NOT NULL);"
"""`revision`: of the store after the batch."""
_UPGRADE = f"DROP TABLE log; {_LOG}"
"""From layout 1. Watches begin anew."""
_FOLD_COMMITS, _FOLD_BYTES = 65_536, 16 << 20
"""What the log has more than the state, at most: it is gone through at a start after a crash, which takes 120 ms. To fold
a thousand keys takes 15 ms, in which no write is answered."""
_CHECKPOINT_PAGES = 4000
"""Pages that the WAL gets, about, before they go into the file itself."""
_PAGE = 4000
"""Bytes of content on a page, about."""
_PART_ROWS = (256, 64, 16, 4, 1)
"""Rows of one statement. SQLite takes 32,766 values in one."""
T = TypeVar("T")
_commits = msgspec.msgpack.Decoder(list[Commit])


class _Unfolded:
    """What the log has and the state has not: the batches after the one that it is made with, up to `batch`. `items`: the last change of
    each key, `leases`: time to live by id, None = it has ended."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.revision = self.commits = self.bytes = 0
        self.items: dict[str, Change] = {}
        self.leases: dict[int, float | None] = {}

    def add(self, commits: Sequence[Commit], size: int) -> None:
        """The next batch, `size` bytes of the log."""
        self.batch += 1
        self.revision = commits[-1].revision
        self.commits += len(commits)
        self.bytes += size
        for commit in commits:
            for change in commit.changes:
                self.items[change.item.key] = change
            if commit.granted or commit.ended:
                self.leases.update(commit.granted)
                self.leases.update((lease, None) for lease in commit.ended)


class Database:
    """An open store file. Every method raises StoreUnavailable when the disk or the file fails."""

    def __init__(self, path: Path, history: int, history_bytes: int) -> None:
        """Open `path`, making it (mode 0600) and its tables if absent. Raises Conflict if another process holds it."""
        self.path = path
        self._history, self._history_bytes = history, history_bytes
        self._floor = 0
        self._unfolded = _Unfolded(0)
        self._pages = 0
        self._sound = True
        self._wal = -1
        self.kernel_sync: KernelSync | None = None
        """Does what `sync` does without a wait, unless the system has no such thing. Whoever opened the file attaches it."""
        try:
            self._make(path)
            self._db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self.failed("open", error) from error
        try:
            self._prepare()
            self._open_wal()
        except sqlite3.OperationalError as error:
            self._db.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise Conflict(f"open store {path}: another process holds it; stop the other agent of this node first") from error
            raise self.failed("open", error) from error
        except (OSError, sqlite3.Error) as error:
            self._db.close()
            raise self.failed("open", error) from error

    @staticmethod
    def _make(path: Path) -> None:
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            sync_folder(path.parent)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint=0")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise sqlite3.DatabaseError(f"it has layout {version}, this version of plait knows up to {VERSION}")
        if version < VERSION:
            tables = _UPGRADE if version else _SCHEMA + _LOG
            self._db.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version={VERSION}; COMMIT;")
        else:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")

    def _open_wal(self) -> None:
        """SQLite keeps that file for as long as it has the database open."""
        sync_folder(self.path.parent)
        self._wal = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.kernel_sync = KernelSync(self._wal)
        except OSError as error:
            log.info("store_syncs_in_thread", extra={"error": str(error)})

    def load(self) -> tuple[State, History]:
        """Everything in the file, durable then."""
        self._sound = False
        try:
            self._checkpoint("TRUNCATE")
            found = self._load()
        except (sqlite3.Error, msgspec.DecodeError, ValueError) as error:
            raise self.failed("read", error) from error
        self._sound = True
        return found

    def _checkpoint(self, mode: str) -> None:
        """Bring what the WAL has into the file itself, durable."""
        busy, _, _ = self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        if busy:
            raise sqlite3.OperationalError("the WAL could not be brought into the file")
        self._pages = 0

    def _load(self) -> tuple[State, History]:
        meta = dict(self._db.execute("SELECT name, value FROM meta").fetchall())
        items = [Item(*row) for row in self._db.execute("SELECT key, value, created, modified, lease FROM items")]
        leases = dict(self._db.execute("SELECT id, ttl FROM leases").fetchall())
        state = State.load(meta.get("revision", FIRST_REVISION), items, leases)
        history: History | None = None
        unfolded = self._unfolded = _Unfolded(meta.get("batch", 0))
        for batch, content in self._db.execute("SELECT batch, commits FROM log ORDER BY batch"):
            commits = _commits.decode(content)
            history = history or History(commits[0].revision - bool(commits[0].changes), self._history, self._history_bytes)
            for commit in commits:
                if commit.changes:
                    history.append(commit)
                if batch > unfolded.batch:
                    state.apply(commit)
            if batch > unfolded.batch:
                unfolded.add(commits, len(content))
        history = history or History(state.revision, self._history, self._history_bytes)
        if history.head != state.revision:
            raise ValueError(f"its log ends at revision {history.head}, its state at {state.revision}")
        return state, history

    @property
    def slow(self) -> bool:
        """Whether the next `write` does more than to write that down."""
        return self._fold_due or self._pages >= _CHECKPOINT_PAGES

    @property
    def _fold_due(self) -> bool:
        return self._unfolded.commits >= _FOLD_COMMITS or self._unfolded.bytes >= _FOLD_BYTES

    def write(self, commits: Sequence[Commit], floor: int) -> None:
        """Put `commits` into the file, all or none. The log up to revision `floor` may go. After a failure of this or of a sync nothing is
        written before the file was read again: it may hold them or not."""
        self._floor = floor
        if not self._sound:
            raise self.failed("write", ValueError("it could not be read again after an earlier failure"))
        try:
            if self._fold_due:
                self._fold()
            if self._pages >= _CHECKPOINT_PAGES:
                self._checkpoint("PASSIVE")
            content = msgspec.msgpack.encode(commits)
            self._db.execute("INSERT INTO log VALUES (?, ?, ?)", (self._unfolded.batch + 1, commits[-1].revision, content))
        except sqlite3.Error as error:
            raise self.failed("write", error) from error
        self._unfolded.add(commits, len(content))
        self._pages += 3 + len(content) // _PAGE

    def sync(self) -> None:
        """Make what was written durable."""
        try:
            os.fdatasync(self._wal)
        except OSError as error:
            raise self.failed("sync", error) from error

    def _fold(self) -> None:
        """Bring the state up to the last batch, and drop what may go of the log."""
        items, leases = self._unfolded.items, self._unfolded.leases
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._put("REPLACE INTO items VALUES", [_row(change.item) for change in items.values() if change.kind == "put"])
            self._delete("items", "key", [key for key, change in items.items() if change.kind == "delete"])
            self._put("REPLACE INTO leases VALUES", [(lease, ttl) for lease, ttl in leases.items() if ttl is not None])
            self._delete("leases", "id", [lease for lease, ttl in leases.items() if ttl is None])
            self._put("REPLACE INTO meta VALUES", [("batch", self._unfolded.batch), ("revision", self._unfolded.revision)])
            self._db.execute("DELETE FROM log WHERE revision<=?", (self._floor,))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._unfolded = _Unfolded(self._unfolded.batch)
        self._pages = _CHECKPOINT_PAGES

    def _put(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        for part in _parts(rows):
            row = f"({', '.join('?' * len(part[0]))})"
            self._db.execute(f"{statement} {', '.join([row] * len(part))}", [value for row in part for value in row])

    def _delete(self, table: str, column: str, values: Sequence[object]) -> None:
        for part in _parts(values):
            self._db.execute(f"DELETE FROM {table} WHERE {column} IN ({', '.join('?' * len(part))})", part)

    def close(self) -> None:
        """Fold, checkpoint and close."""
        try:
            try:
                if self._unfolded.commits and self._sound:
                    self._fold()
            finally:
                if self.kernel_sync is not None:
                    self.kernel_sync.close()
                os.close(self._wal)
                self._db.close()
        except sqlite3.Error as error:
            raise self.failed("close", error) from error

    def failed(self, what: str, error: Exception) -> StoreUnavailable:
        """What is raised for that error."""
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
