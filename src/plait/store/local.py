# SPDX-License-Identifier: Apache-2.0
"""What the memory and SQLite stores share: transactions, watches and leases on a `State` of this process.

Data in: calls of the store seam. Data out: commits handed to `_persist` in order; once that says so they are in force, visible to reads
and watches. Time is a monotonic clock only: wall clock jumps change nothing. Used from one event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from plait.model.errors import StoreUnavailable
from plait.store.api import Change, Compare, Delete, Item, Listing, Put, TxnResult
from plait.store.state import Commit, History, State, check_ttl, check_txn
from plait.store.write import Write

T = TypeVar("T")
HISTORY = 10_000
"""Revisions held for watches."""
HISTORY_BYTES = 16 * 1024 * 1024
"""Bytes of keys and values held for watches."""
_STALL = 1.0
"""Seconds that the expiry timer may be late; more means that this process was stopped, and leases get the time back."""
_TICK = 1.0
"""Seconds between looks at the leases, at most."""


_Follower = tuple[str, Callable[[tuple[Change, ...]], bool]]
"""What it is told of, and how."""


def _leave(changes: tuple[Change, ...]) -> bool:
    """Take none."""
    return False


def new_lease_id() -> int:
    """A random positive id of 62 bits: never one that was in use before a loss of data."""
    return secrets.randbits(62) + 1


class LocalStore(ABC):
    """Store seam over a state in this process. Subclasses say what makes a commit durable."""

    def __init__(
        self, state: State, history: History, clock: Callable[[], float] = time.monotonic, lease_id: Callable[[], int] = new_lease_id
    ) -> None:
        self._durable, self._working, self._history = state, state.copy(), history
        self._clock, self._lease_id = clock, lease_id
        self._followers: dict[asyncio.Future[int], _Follower] = {}
        """Those that have everything up to the head. Each is told in turn of what comes, and its future gets where it stays behind."""
        self._deadlines: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False
        self._frozen = ""

    async def freeze(self, why: str) -> None:
        """Take no transaction from now on (they raise StoreUnavailable, which says why) until `thaw`; returns when all that were taken
        before are durable. Not remembered over a restart."""
        self._frozen = why
        await self._persist(Commit(self._working.revision), None)

    def thaw(self) -> None:
        self._frozen = ""

    # --- the seam

    async def get(self, key: str) -> Item | None:
        """The durable item at `key`."""
        self._check_open()
        return self._durable.items.get(key)

    async def list(self, prefix: str) -> Listing:
        self._check_open()
        return self._durable.listing(prefix)

    def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> Write[TxnResult]:
        """Evaluated at once, in the order of calls; answered when it, and whatever it was compared with, is durable."""
        self._check_open()
        if self._frozen:
            raise StoreUnavailable(self._frozen)
        check_txn(compares, ops)
        commit = self._working.evaluate(compares, ops)
        if commit is None:
            return self._persist(Commit(self._working.revision), TxnResult(False, self._working.revision))
        return self._submit(commit, TxnResult(True, commit.revision))

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        """Reads history behind a cursor: nothing is buffered for a slow watcher, it ends with Compacted when too far behind."""
        cursor = from_revision
        while True:
            changes, cursor = self.since(prefix, cursor)
            if changes:
                yield changes
            else:
                cursor = await self.follow(prefix, cursor, _leave)

    def since(self, prefix: str, revision: int) -> tuple[tuple[Change, ...], int]:
        """What `watch` yields next behind `revision`, and the revision that it reaches; nothing at the head. Raises as `watch`."""
        self._check_open()
        return self._history.since(revision, prefix)

    async def follow(self, prefix: str, revision: int, take: Callable[[tuple[Change, ...]], bool]) -> int:
        """Have `take` called with what comes behind `revision` the moment that it is durable, all followers with the same tuple. It never
        raises, and says whether it took them. Returns when some were not taken, or `revision` is not the head: up to where all were."""
        self._check_open()
        if revision != self._history.head:
            return revision
        behind: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._followers[behind] = prefix, take
        try:
            return await behind
        finally:
            del self._followers[behind]

    async def grant(self, ttl: float) -> int:
        """Durable when it returns; raises ConfigError unless 0 < ttl <= one day."""
        self._check_open()
        check_ttl(ttl)
        lease = self._lease_id()
        self._start_lease(lease, ttl)
        return await self._submit(Commit(self._working.revision, granted=((lease, ttl),)), lease)

    async def keepalive(self, lease: int) -> bool:
        self._check_open()
        ttl = self._working.leases.get(lease)
        if ttl is None or lease not in self._deadlines:
            return False
        self._start_lease(lease, ttl)
        return True

    async def revoke(self, lease: int) -> None:
        """End `lease` now and delete its keys. Revoking one that has ended changes nothing."""
        self._check_open()
        if lease in self._working.leases:
            await self._submit(self._working.end_lease(lease), None)
            self._deadlines.pop(lease, None)

    async def close(self) -> None:
        """Free every waiter: from now on all calls and watches raise StoreUnavailable. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell(self._history.head)

    # --- durability

    @abstractmethod
    def _persist(self, commit: Commit, result: T) -> Write[T]:
        """Make `commit` durable and then `_take` it, in the order of calls. `result` is its value when that has happened."""

    def _submit(self, commit: Commit, result: T) -> Write[T]:
        self._working.apply(commit)
        return self._persist(commit, result)

    def _take(self, commits: Iterable[Commit]) -> None:
        """They are durable: show them to reads and watches, which learn of them before whoever made them."""
        before, changing = self._history.head, []
        for commit in commits:
            self._durable.apply(commit)
            if commit.changes:
                changing.append(commit)
        if changing:
            self._history.append(*changing)
            self._tell(before)

    def _reset(self, state: State, history: History) -> None:
        """Go back to what is durable after a failed write. Watches that cannot go on from there end with Compacted."""
        before = self._history.head
        self._durable, self._working, self._history = state, state.copy(), history
        self._deadlines = {lease: due for lease, due in self._deadlines.items() if lease in state.leases}
        self._tell(before)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("use the store: it is closed because the agent is stopping; retry when it runs again")

    # --- watches

    def _tell(self, before: int) -> None:
        """Tell the followers, who have everything up to `before`, of what came then. They look themselves where that is nothing, or too
        much for one look."""
        told: dict[str, tuple[Change, ...]] = {}
        whole = not self._closed and self._history.floor <= before < self._history.head
        for behind, (prefix, take) in list(self._followers.items()) if self._followers else ():
            if whole and prefix not in told:
                told[prefix], reached = self._history.since(before, prefix)
                whole = reached == self._history.head
            if not behind.done() and not (whole and (not told[prefix] or take(told[prefix]))):
                behind.set_result(before)

    # --- leases

    def _start_lease(self, lease: int, ttl: float) -> None:
        self._deadlines[lease] = self._clock() + ttl
        self._arm()

    def _arm(self) -> None:
        """Have `_expire` called at the next deadline, or in a tick if that is sooner."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed or not self._deadlines:
            return
        now = self._clock()
        wait = min(max(0.0, min(self._deadlines.values()) - now), _TICK)
        self._timer_due = now + wait
        self._timer = asyncio.get_running_loop().call_later(wait, self._expire)

    def _expire(self) -> None:
        """End every lease whose deadline has passed; the keys go when that is durable."""
        now = self._clock()
        late = now - self._timer_due
        if late > _STALL:
            self._deadlines = {lease: due + late for lease, due in self._deadlines.items()}
        for lease in [lease for lease, due in self._deadlines.items() if due <= now]:
            del self._deadlines[lease]
            if lease in self._working.leases:
                self._submit(self._working.end_lease(lease), None).add_done_callback(self._expired)
        self._arm()

    def _expired(self, done: Write[None]) -> None:
        """A lease that could not be ended on disk gets another chance: it counts as due again."""
        if not done.cancelled() and done.exception() is not None:
            for lease in self._durable.leases:
                self._deadlines.setdefault(lease, self._clock() + _TICK)
            self._arm()
