# SPDX-License-Identifier: Apache-2.0
"""What this node must not forget, durable before it answers: endpoints, address reservations, own blocks, service instances, how high
the indexes of blocking queries came, and the small documents of the runtimes. SQLite with synchronous=FULL; all access through one thread,
in the order of the calls."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from plait.model.errors import NotSaved

_SCHEMA = "CREATE TABLE IF NOT EXISTS doc (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class Write:
    """Put (`body` given) or delete (None) one document."""

    kind: str
    id: str
    body: bytes | None


class Journal:
    """A durable map (kind, id) -> bytes. `write` returns after the disk has it; several writes of one call are atomic. Whatever waits for
    the disk may raise NotSaved; the disk has nothing of that call then."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = ThreadPoolExecutor(1, "journal")
        self._db = self._thread.submit(_open, path).result()

    async def write(self, writes: Sequence[Write]) -> None:
        if writes:
            await self.queue(writes)

    def queue(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """Put in line at once, before whatever is written later; done when the disk has it."""
        return asyncio.get_running_loop().run_in_executor(self._thread, _apply, self._db, tuple(writes))

    def submit(self, writes: Sequence[Write]) -> Future[None]:
        """The same for who cannot await: `result()` blocks until the disk has it."""
        return self._thread.submit(_apply, self._db, tuple(writes))

    def load(self, kind: str) -> dict[str, bytes]:
        """All documents of a kind; used at start, before the loop has other work."""
        return self._thread.submit(_load, self._db, kind).result()

    def close(self) -> None:
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()


def write_all(path: Path, writes: Iterable[Write]) -> None:
    """Put them into the journal of an agent that does not run; atomic, on disk when it returns."""
    with contextlib.closing(_open(path)) as db:
        _apply(db, writes)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(_SCHEMA)
    return db


def _apply(db: sqlite3.Connection, writes: Iterable[Write]) -> None:
    try:
        db.execute("BEGIN IMMEDIATE")
        for write in writes:
            if write.body is None:
                db.execute("DELETE FROM doc WHERE kind = ? AND id = ?", (write.kind, write.id))
            else:
                db.execute("INSERT OR REPLACE INTO doc VALUES (?, ?, ?)", (write.kind, write.id, write.body))
        db.execute("COMMIT")
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            path = db.execute("PRAGMA database_list").fetchone()[2]
            raise NotSaved(f"the journal of this node, {path}, cannot be written: {error}; is the disk full, or read-only?") from error
        raise


def _load(db: sqlite3.Connection, kind: str) -> dict[str, bytes]:
    return dict(db.execute("SELECT id, body FROM doc WHERE kind = ?", (kind,)))
