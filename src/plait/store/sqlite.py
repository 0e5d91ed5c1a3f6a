# SPDX-License-Identifier: Apache-2.0
"""The embedded store: SQLite with group commit, durable before it answers.

Data in: calls of the store seam. Data out: the same as the memory store's, after the commit is on disk. Transactions are evaluated in
the event loop on the state as it will be; the writer takes all that wait and writes them in one SQLite transaction; then they are
shown to readers. If a write fails, everything evaluated on top of it fails too, and the state is read again from the file.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from plait.model.errors import StoreUnavailable
from plait.store.database import Database
from plait.store.kernelsync import KernelSync
from plait.store.local import HISTORY, HISTORY_BYTES, LocalStore
from plait.store.state import Commit, History, State
from plait.store.write import Write

log = logging.getLogger("plait.store")
T = TypeVar("T")

_BATCH = 256
"""Commits in one row of the log, at most: as many of the largest fit into one value of SQLite (10**9 bytes)."""
_HERE_BYTES = 256 * 1024
"""Of values, up to which a batch is written from the loop: a matter of half a millisecond."""
_SLOW_S, _APART_S = 0.02, 5.0
"""If a write holds up the loop for longer than the first, those of so many seconds are made in a thread. One that another process took the
CPU from is none of these: it would take longer there."""
_CLOSE_WAIT = 10.0
"""Seconds to wait for the last batch when closing."""


def _preemptions() -> int:
    """How often the CPU was taken from this thread (getrusage(2): involuntary context switches)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a batch was not written, and what the file holds now (None: it could not be read either)."""

    error: Exception
    now: tuple[State, History] | None


class _Writer:
    """Owns the open database. Calls `report(count, failure)` in the order of writes, each when its fate is known. Used from the loop only.

    One batch is on its way at a time. It is written from the loop, which is a copy into the kernel's memory, and synced by the kernel while
    the loop goes on; what comes meanwhile is the next batch. All that is done in a thread where the kernel cannot do so, if the batch is
    large, when the file has to be put in order, after a failure, and for a while after the disk held up the loop.
    """

    def __init__(self, database: Database, report: Callable[[int, _Failure | None], None]) -> None:
        self._database, self._report, self._loop = database, report, asyncio.get_running_loop()
        self._sync = database.kernel_sync
        if self._sync is not None:
            self._sync.attach(self._synced)
        self._thread = ThreadPoolExecutor(1, "plait-store-writer")
        self._apart_until = 0.0
        self._waiting: deque[Write[Any]] = deque()
        self._batch: list[Write[Any]] = []
        self._rings = self._closing = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._failed: tuple[int, _Failure] | None = None

    def add(self, write: Write[Any]) -> None:
        """Have it written, with all that comes in this round of the loop."""
        self._waiting.append(write)
        if not (self._rings or self._batch):
            self._rings = True
            self._loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._rings = False
        self._begin()

    def end(self) -> None:
        """Write what waits, then close the database."""
        self._closing = True
        self._begin()

    def _begin(self) -> None:
        """The next batch, if none is on its way."""
        if self._batch:
            return
        if not self._waiting:
            if self._closing:
                self._close()
            return
        batch = self._batch = self._next_batch()
        if self._failed is not None and self._failed[0] == batch[0].generation:
            self._loop.call_soon(self._done, self._failed[1])
        elif self._sync is not None and self._is_quick(batch):
            self._write_here(batch, self._sync)
        else:
            self._in_thread(self._write_apart, batch)

    def _next_batch(self) -> list[Write[Any]]:
        """All that wait, of one generation."""
        count, generation = min(len(self._waiting), _BATCH), self._waiting[0].generation
        while self._waiting[count - 1].generation != generation:
            count -= 1
        return [self._waiting.popleft() for _ in range(count)]

    def _is_quick(self, batch: list[Write[Any]]) -> bool:
        """Whether to write it holds up the loop for no time worth speaking of."""
        if self._database.slow or self._loop.time() < self._apart_until:
            return False
        size = 0
        for write in batch:
            for change in write.commit.changes:
                size += len(change.item.value)
        return size <= _HERE_BYTES

    def _write_here(self, batch: list[Write[Any]], sync: KernelSync) -> None:
        began, before = self._loop.time(), _preemptions()
        try:
            self._database.write([write.commit for write in batch], batch[-1].floor)
        except Exception as error:
            self._in_thread(self._failure, error)
        else:
            try:
                sync.start()
            except OSError:  # too much at once for the kernel
                self._in_thread(self._sync_apart)
        now = self._loop.time()
        if now - began > _SLOW_S and _preemptions() == before:
            self._apart_until = now + _APART_S

    def _synced(self, error: OSError | None) -> None:
        if error is None:
            self._done(None)
        else:
            self._in_thread(self._failure, self._database.failed("sync", error))

    def _write_apart(self, batch: list[Write[Any]]) -> _Failure | None:
        try:
            self._database.write([write.commit for write in batch], batch[-1].floor)
        except Exception as error:
            return self._failure(error)
        return self._sync_apart()

    def _sync_apart(self) -> _Failure | None:
        try:
            self._database.sync()
        except StoreUnavailable as error:
            return self._failure(error)
        return None

    def _failure(self, error: Exception) -> _Failure:
        try:
            return _Failure(error, self._database.load())
        except StoreUnavailable:
            return _Failure(error, None)

    def _in_thread(self, work: Callable[..., _Failure | None], *arguments: object) -> None:
        """Have the fate of the batch found out there."""
        self._loop.run_in_executor(self._thread, work, *arguments).add_done_callback(lambda fate: self._done(fate.result()))

    def _done(self, failure: _Failure | None) -> None:
        """The batch is durable, or failed. The next one goes to the disk before anybody is told, so that the disk has no pause."""
        batch, self._batch = self._batch, []
        if failure is not None:
            self._failed = batch[0].generation, failure
        self._begin()
        self._report(len(batch), failure)

    def _close(self) -> None:
        if self._sync is not None:
            self._sync.detach()
        self._closing = False
        self._loop.run_in_executor(self._thread, self._database.close).add_done_callback(self._closed)
        self._thread.shutdown(wait=False)

    def _closed(self, done: asyncio.Future[None]) -> None:
        if (error := done.exception()) is not None:
            log.error("store_close_failed", exc_info=error)
        self.closed.set_result(None)


class SqliteStore(LocalStore):
    """Store seam over one SQLite file that this process holds exclusively. Make it with `await SqliteStore.open(path)`."""

    def __init__(self, database: Database, state: State, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(state, history, clock)
        self._generation = 0
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Write[Any]] = deque()
        self._writer = _Writer(database, self._written)
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

    def _persist(self, commit: Commit, result: T) -> Write[T]:
        write = Write(self._generation, commit, self._history.floor, result)
        if self._closed:
            write.tell(StoreUnavailable("write to the store: it is closed; retry when the agent runs again"))
        elif commit.changes or commit.granted or commit.ended or self._pending:
            self._pending.append(write)
            self._writer.add(write)
        else:
            write.tell()
        return write

    def _written(self, count: int, failure: _Failure | None) -> None:
        """The oldest `count` pending commits are durable, or failed together."""
        batch = [self._pending.popleft() for _ in range(count)]
        if failure is None:
            self._take(write.commit for write in batch)
        self._loop.call_soon(_tell, batch, failure.error if failure is not None else None)
        if failure is not None and batch[0].generation == self._generation:
            self._generation += 1
            log.error("store_write_failed", extra={"error": str(failure.error)})
            self._reset(*(failure.now or (self._durable, self._history)))


def _tell(batch: Sequence[Write[Any]], error: Exception | None) -> None:
    """Those who made the writes, after those who watch (`_take` woke them in this round of the loop)."""
    for write in batch:
        write.tell(error)
