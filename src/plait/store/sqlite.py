# SPDX-License-Identifier: Apache-2.0
"""The embedded store: SQLite in one writer thread with group commit, durable before it answers.

Data in: calls of the store seam. Data out: the same as the memory store's, after the commit is on disk. Transactions are evaluated in
the event loop on the state as it will be; the writer takes all that wait and writes them in one SQLite transaction; then they are
shown to readers. If a write fails, everything evaluated on top of it fails too, and the state is read again from the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

from plait.model.errors import StoreUnavailable
from plait.store.database import Database
from plait.store.local import HISTORY, HISTORY_BYTES, LocalStore
from plait.store.state import Commit, History, State

log = logging.getLogger("plait.store")
T = TypeVar("T")

_BATCH = 256
"""Commits in one row of the log, at most: as many of the largest fit into one value of SQLite (10**9 bytes)."""
_CLOSE_WAIT = 10.0
"""Seconds to wait for the last batch when closing."""


class _Entry(NamedTuple, Generic[T]):
    """A commit to write. Entries of one generation were evaluated on top of each other; `floor`: log up to here may go; `done` has `result`
    when the commit is durable."""

    generation: int
    commit: Commit
    floor: int
    done: asyncio.Future[T]
    result: T


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a batch was not written, and what the file holds now (None: it could not be read either)."""

    error: Exception
    now: tuple[State, History] | None


class _Writer(Thread):
    """Owns the open database. Calls `report(count, failure)` in the loop, in the order of entries, each when its fate is known.

    Whoever adds an entry does not wake this thread, which would take the interpreter from the loop each time: `ring` does, once for all
    that were added in a round of the loop, and only if it sleeps. It takes all that wait whenever it is done with a batch.
    """

    def __init__(self, database: Database, report: Callable[[int, _Failure | None], None]) -> None:
        super().__init__(name="plait-store-writer", daemon=True)
        self._database, self._report, self._loop = database, report, asyncio.get_running_loop()
        self._entries: deque[_Entry[Any]] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._sleeps = self._rings = self._closing = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._failed: tuple[int, _Failure] | None = None

    def add(self, entry: _Entry[Any]) -> None:
        """Have it written. From the loop."""
        self._entries.append(entry)
        if not self._rings:
            self._rings = True
            self._loop.call_soon(self._ring)

    def end(self) -> None:
        """Write what waits, then close the database. From the loop."""
        self._closing = True
        self._bell.put(None)

    def _ring(self) -> None:
        self._rings = False
        if self._sleeps:
            self._sleeps = False
            self._bell.put(None)

    def run(self) -> None:
        while batch := self._next_batch():
            self._post(self._report, len(batch), self._write(batch))
        try:
            self._database.close()
        except StoreUnavailable:
            log.exception("store_close_failed")
        self._post(self.closed.set_result, None)

    def _next_batch(self) -> list[_Entry[Any]]:
        """All entries that wait, of one generation; none once the store is closing."""
        while not self._entries:
            self._sleeps = True  # before the second look: whoever adds after that sees it
            if not self._entries:
                if self._closing:
                    return []
                self._bell.get()
            self._sleeps = False
        count, generation = min(len(self._entries), _BATCH), self._entries[0].generation
        while self._entries[count - 1].generation != generation:
            count -= 1
        return [self._entries.popleft() for _ in range(count)]

    def _write(self, batch: list[_Entry[Any]]) -> _Failure | None:
        generation = batch[0].generation
        if self._failed is not None and self._failed[0] == generation:
            return self._failed[1]
        try:
            self._database.write([entry.commit for entry in batch], batch[-1].floor)
        except Exception as error:
            self._failed = generation, _Failure(error, self._reload())
            return self._failed[1]
        return None

    def _reload(self) -> tuple[State, History] | None:
        try:
            return self._database.load()
        except StoreUnavailable:
            return None

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        """Have `call` run in the loop. A loop that has ended has nobody left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)


class SqliteStore(LocalStore):
    """Store seam over one SQLite file that this process holds exclusively. Make it with `await SqliteStore.open(path)`."""

    def __init__(self, database: Database, state: State, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(state, history, clock)
        self._generation = 0
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Entry[Any]] = deque()
        self._writer = _Writer(database, self._written)
        self._writer.start()
        for lease, ttl in state.leases.items():
            self._start_lease(lease, ttl)

    @classmethod
    async def open(cls, path: Path, clock: Callable[[], float] = time.monotonic, history: int = HISTORY) -> SqliteStore:
        """Open or make the store file. Every lease in it gets its full time again, counted from now.

        Raises Conflict if another process holds the file, StoreUnavailable if it cannot be read.
        """

        def load() -> tuple[Database, State, History]:
            database = Database(path, history, HISTORY_BYTES)
            try:
                return database, *database.load()
            except BaseException:
                database.close()
                raise

        return cls(*await asyncio.to_thread(load), clock)

    async def close(self) -> None:
        """Write what waits, then close the file. Idempotent."""
        if not self._closed:
            await super().close()
            self._writer.end()
        try:
            async with asyncio.timeout(_CLOSE_WAIT):
                await asyncio.shield(self._writer.closed)
        except TimeoutError:
            log.warning("store_close_slow", extra={"waited_s": _CLOSE_WAIT})

    def _persist(self, commit: Commit, result: T) -> asyncio.Future[T]:
        done: asyncio.Future[T] = asyncio.Future(loop=self._loop)
        if self._closed:
            done.set_exception(StoreUnavailable("write to the store: it is closed; retry when the agent runs again"))
            return done
        empty = not (commit.changes or commit.granted or commit.ended)
        if empty and not self._pending:
            done.set_result(result)
            return done
        entry = _Entry(self._generation, commit, self._history.floor, done, result)
        self._pending.append(entry)
        self._writer.add(entry)
        return done

    def _written(self, count: int, failure: _Failure | None) -> None:
        """The oldest `count` pending commits are durable, or failed together."""
        batch = [self._pending.popleft() for _ in range(count)]
        if failure is None:
            self._take(entry.commit for entry in batch)
        for _, _, _, done, result in batch:
            if done.done():
                continue
            if failure is None:
                done.set_result(result)
            else:
                done.set_exception(failure.error)
        if failure is not None and batch[0].generation == self._generation:
            self._generation += 1
            log.error("store_write_failed", extra={"error": str(failure.error)})
            self._reset(*(failure.now or (self._durable, self._history)))
