# SPDX-License-Identifier: Apache-2.0
"""Keys and sessions of the cluster: served from the replica, written by compare-and-set. Implements `serve.consul_kv.KvBackend`.

Store keys: `kv/<key>`, `sessions/<id>`, `sessionlife/<id>` (leased: the sign of life of a session with a time to live), `lockdelay/<key>`
(leased: nobody takes that lock before it has gone). A write reads the replica, decides by the pure rules, and is made under the condition
that what it read is still so; else it catches up and decides again. So answers hold for the whole cluster, whichever agent gave them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from plait.agent.view import View
from plait.model.cluster import Snapshot
from plait.model.errors import NotFound, PlaitError
from plait.model.kv import Entry, Session
from plait.services.figures import Summary
from plait.services.kv import KvPut, Table, may_delete, put, released
from plait.services.txnkeys import Keys
from plait.store.api import Change, Compare, Delete, Item, Put, Store
from plait.store.codec import decode, encode
from plait.store.local import LocalStore

log = logging.getLogger("plait.kv")
TRIES = 50
"""How often a write is decided anew because somebody else was quicker. With the pauses between them a matter of seconds."""
_HEAR_S = 2.0
"""How long a read waits after a start for the store to be heard of."""
_LIFE_FACTOR = 2
"""A session ends between one and two times its TTL: clients renew at half of it and count on Consul's patience."""
_BATCH_BYTES = 1 << 20
KV, SESSION, LIFE, DELAY = "kv/", "sessions/", "sessionlife/", "lockdelay/"


_MOST_WRITTEN = 1024
"""Writes on their way to the store and back that are not read again."""


class _Stored(msgspec.Struct, frozen=True):
    """What the store holds of an `Entry`; its indexes are those of the item. Every write makes one and reads one, and a frozen dataclass
    takes several times as long to make."""

    key: str
    value: bytes = b""
    flags: int = 0
    session: str = ""
    lock_index: int = 0


class Contended(PlaitError):
    """A key is written by so many at once that this write did not get through."""


Wake = Callable[[], object]


class Waiters:
    """Who waits for a change of which key or of anything below which prefix. A change costs one look per character of its key."""

    def __init__(self) -> None:
        self._exact: dict[str, set[Wake]] = {}
        self._below: dict[str, set[Wake]] = {}

    def join(self, key: str, below: bool, wake: Wake) -> None:
        """Have `wake` called at each change of `key`, or of anything that starts with it, until `leave`. It must not do either itself."""
        (self._below if below else self._exact).setdefault(key, set()).add(wake)

    def leave(self, key: str, below: bool, wake: Wake) -> None:
        table = self._below if below else self._exact
        table[key].discard(wake)
        if not table[key]:
            del table[key]

    def wake(self, key: str) -> None:
        for wake in self._exact.get(key, ()):
            wake()
        if self._below:
            for length in range(len(key) + 1):
                for wake in self._below.get(key[:length], ()):
                    wake()

    def __len__(self) -> int:
        return sum(len(waiting) for table in (self._exact, self._below) for waiting in table.values())


class Kv:
    """`change` is told what the store says; everything else may be called at any time, from the loop only."""

    def __init__(self, view: View, store: Store, contact_ms: Callable[[], int | None]) -> None:
        self._view, self._store, self._contact_ms = view, store, contact_ms
        self._is_local = isinstance(store, LocalStore)
        self.table = Table()
        self.sessions: dict[str, Session] = {}
        self.sessions_index = 1
        self.key_waiters, self.session_waiters = Waiters(), Waiters()
        self._held: dict[str, set[str]] = {}
        self._written: dict[bytes, _Stored] = {}
        self._living: dict[str, int] = {}
        self._delayed: dict[str, int] = {}
        self.took_ms = Summary()
        """Of the writes of keys and sessions, from the transaction to its durable answer."""
        self._started = False
        self._heard = asyncio.Event()
        self._heard.set()

    # --- what the store says

    def change(self, changes: Iterable[Change], revision: int) -> list[Change]:
        """Replicated changes in their order. Those of other kinds come back."""
        if not self._started:
            self._started = True
            self.table.start_at(revision)
            self.sessions_index = max(self.sessions_index, revision)
        others = []
        for change in changes:
            kind, _, name = change.item.key.partition("/")
            if kind == "kv":
                self._change_key(name, change)
            elif kind == "sessions":
                self._change_session(name, change)
            elif kind == "sessionlife":
                _note(self._living, name, change)
                self.session_waiters.wake(name)
            elif kind == "lockdelay":
                _note(self._delayed, name, change)
            else:
                others.append(change)
        return others

    def _entry(self, key: str, item: Item) -> Entry | None:
        stored = self._written.pop(item.value, None)
        try:
            stored = stored or decode(_Stored, item.value, item.key)
        except PlaitError as error:
            log.warning("key_unreadable", extra={"key": item.key, "error": str(error)})
            return None
        return Entry(key, stored.value, stored.flags, stored.session, stored.lock_index, item.create_revision, item.mod_revision)

    def start(self) -> None:
        """Begin with what the disk has: it may be older than what was answered before, until the store is `heard`."""
        self._heard.clear()

    def heard(self, revision: int) -> None:
        """The replica is a whole copy of the store at that revision, for the first time since the start."""
        self.table.start_at(revision)
        self.sessions_index = max(self.sessions_index, revision)
        self._heard.set()

    def _change_key(self, key: str, change: Change) -> None:
        before = self.table.get(key)
        if before is not None and before.session:
            self._held.get(before.session, set()).discard(key)
        entry = self._entry(key, change.item) if change.kind == "put" else None
        if entry is None:
            self.table.drop(key, change.revision)
        else:
            self.table.set(entry)
            if entry.session:
                self._held.setdefault(entry.session, set()).add(key)
        self.key_waiters.wake(key)

    def _change_session(self, session_id: str, change: Change) -> None:
        self.sessions_index = max(self.sessions_index, change.revision)
        if change.kind == "put":
            record = decode(Session, change.item.value, change.item.key)
            self.sessions[session_id] = replace(record, create_index=change.item.create_revision, modify_index=change.item.mod_revision)
        else:
            self.sessions.pop(session_id, None)
        self.session_waiters.wake(session_id)

    # --- reading

    def last_contact_ms(self) -> int | None:
        return self._contact_ms()

    def snapshot(self) -> Snapshot:
        return self._view.snapshot

    @property
    def fresh(self) -> bool:
        """Whether what is here is at least as new as all that this agent ever answered."""
        return self._heard.is_set()

    async def freshened(self) -> bool:
        """Whether it is so in a moment; after a start it takes one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_S):
                await self._heard.wait()
        return self.fresh

    async def current(self) -> None:
        """Return when the replica holds everything that was written before the call. StoreUnavailable if the store is out of reach."""
        listing = await self._store.list("guards/none")
        await self._view.caught_up(listing.revision)

    def locked(self, session: str) -> list[Entry]:
        """The entries that `session` holds."""
        found = (self.table.get(key) for key in self._held.get(session, ()))
        return [entry for entry in found if entry is not None]

    def orphans(self) -> list[str]:
        """Sessions that hold keys but are no more."""
        return [session for session, keys in self._held.items() if keys and session not in self.sessions]

    def lives(self, session: Session) -> bool:
        """Whether a session with a time to live still has its sign of life."""
        return not session.ttl or session.id in self._living

    def keys(self) -> Keys:
        """All that decides about a write of keys, as it is now."""
        return Keys(self.table, self.sessions, self._delayed)

    # --- writing keys

    def needs_task(self, request: KvPut) -> bool:
        """Whether only a task may await that write, for there are timeouts in it: of sessions and leases, and of the wire."""
        return bool(request.acquire or request.ttl) or not self._is_local

    async def put(self, request: KvPut) -> bool:
        """Whether the key is as `request` wants it now. NotFound for a session that is none, Contended, StoreUnavailable."""
        for attempt in range(TRIES):
            known = self.table.get(request.key)
            conditions = [Compare(KV + request.key, known.modify_index if known is not None else 0)]
            outcome = put(known, request)
            free = True
            if request.acquire and isinstance(outcome, Entry) and (known is None or known.session != request.acquire):
                free = request.key not in self._delayed
                conditions += await self._lock_conditions(request)
            if not (isinstance(outcome, Entry) and free):
                done = await self._commit(conditions, [])
            elif request.ttl:
                done = await self._lend(conditions, outcome, request.ttl)
            else:
                done = await self._commit(conditions, [self._put(outcome)])
            if done:
                return bool(outcome) and free
            await pause(attempt)
        raise Contended(f"cannot write key {request.key!r}: too many others write it at once; try again")

    async def _lock_conditions(self, request: KvPut) -> list[Compare]:
        session = await self._session(request.acquire)
        return [Compare(SESSION + session.id, session.modify_index), Compare(DELAY + request.key, self._delayed.get(request.key, 0))]

    async def _session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            await self.current()  # it may have been made on another node a moment ago
        found = self.sessions.get(session_id)
        if found is None:
            raise NotFound(f'invalid session "{session_id}"')
        return found

    async def _lend(self, conditions: list[Compare], entry: Entry, ttl: float) -> bool:
        """Write an entry that goes by itself."""
        lease = await self._store.grant(ttl)
        done = await self._commit(conditions, [self._put(entry, lease)])
        if not done:
            await self._store.revoke(lease)
        return done

    def _put(self, entry: Entry, lease: int = 0) -> Put:
        """As `put_entry`, for a write that the store says back to this agent soon: to read it then costs as much as to make it."""
        stored = _stored(entry.key, entry)
        put = Put(KV + entry.key, encode(stored), lease)
        if len(self._written) >= _MOST_WRITTEN:  # what the store refused stays in it
            self._written.clear()
        self._written[put.value] = stored
        return put

    async def _commit(self, conditions: list[Compare], ops: list[Put | Delete]) -> bool:
        """One transaction; afterwards the replica has it, or what was there before it instead."""
        began = time.monotonic()
        result = await self._store.txn(conditions, ops)
        if self._view.revision < result.revision:
            await self._view.caught_up(result.revision)
        self.took_ms.add((time.monotonic() - began) * 1000)
        return result.ok

    async def delete(self, key: str, recurse: bool = False, cas: int | None = None) -> bool:
        """False if `cas` is not the key's index now. Contended, StoreUnavailable."""
        if recurse:
            return await self._commit([], [Delete(KV + key, prefix=True)])
        for attempt in range(TRIES):
            known = self.table.get(key)
            condition = Compare(KV + key, known.modify_index if known is not None else 0)
            allowed = may_delete(known, cas)
            if await self._commit([condition], [Delete(KV + key)] if allowed and known is not None else []):
                return allowed
            await pause(attempt)
        raise Contended(f"cannot delete key {key!r}: too many others write it at once; try again")

    # --- sessions

    async def create_session(self, session: Session) -> None:
        """Durable when it returns. StoreUnavailable."""
        ops: list[Put | Delete] = []
        if session.ttl:
            lease = await self._store.grant(_LIFE_FACTOR * session.ttl)
            ops.append(Put(LIFE + session.id, b"1", lease))
            session = replace(session, lease=lease)
        ops.append(Put(SESSION + session.id, encode(session)))
        await self._commit([Compare(SESSION + session.id, 0)], ops)
        log.info("session_created", extra={"id": session.id, "node": session.node, "ttl": session.ttl})

    async def renew_session(self, session_id: str) -> Session | None:
        """The session, with its whole time before it again; None if it is no more. StoreUnavailable."""
        with contextlib.suppress(NotFound):
            session = await self._session(session_id)
            if not session.ttl or await self._store.keepalive(session.lease):
                return session
        return None

    async def end_session(self, session_id: str, why: str) -> None:
        """Remove the session and its locks; each of its keys refuses locks for the session's lock delay. Idempotent. StoreUnavailable."""
        session = self.sessions.get(session_id) or Session(session_id, "")
        for attempt in range(TRIES):
            await self._release_some(session)
            conditions = [Compare(KV + e.key, e.modify_index) for e in self.locked(session_id)]
            if not conditions and await self._commit([], [Delete(SESSION + session_id), Delete(LIFE + session_id)]):
                log.info("session_ended", extra={"id": session_id, "node": session.node, "reason": why})
                return
            await pause(attempt)
        raise Contended(f"cannot end session {session_id}: its keys are written by too many at once")

    async def _release_some(self, session: Session) -> None:
        """Release as many of its keys as one transaction takes."""
        batch: list[tuple[Entry, Entry | None]] = []
        for pair in released(self.locked(session.id), {session.id: session.behavior}):
            if batch and sum(len(entry.value) for entry, _ in (*batch, pair)) > _BATCH_BYTES:
                break
            batch.append(pair)
        if not batch:
            return
        ops = [put_entry(entry.key, left) for entry, left in batch]
        conditions = [Compare(KV + entry.key, entry.modify_index) for entry, _ in batch]
        if session.lock_delay:
            lease = await self._store.grant(session.lock_delay)
            with contextlib.suppress(NotFound):  # the lease of a delay of milliseconds may have ended, and with it the delay
                await self._commit(conditions, [*ops, *(Put(DELAY + entry.key, b"1", lease) for entry, _ in batch)])
                return
        await self._commit(conditions, ops)


def _note(known: dict[str, int], name: str, change: Change) -> None:
    if change.kind == "put":
        known[name] = change.item.mod_revision
    else:
        known.pop(name, None)


def _stored(key: str, entry: Entry) -> _Stored:
    return _Stored(key, entry.value, entry.flags, entry.session, entry.lock_index)


def put_entry(key: str, entry: Entry | None, lease: int = 0) -> Put | Delete:
    """What leaves `entry` under `key`, None = nothing. Its indexes are the store's business."""
    if entry is None:
        return Delete(KV + key)
    return Put(KV + key, encode(_stored(key, entry)), lease)


async def pause(attempt: int) -> None:
    """Let others through, longer each time; at first not at all, for the replica has just caught up."""
    await asyncio.sleep(0.001 * attempt)
