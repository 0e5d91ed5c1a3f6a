# SPDX-License-Identifier: Apache-2.0
"""Changes of the catalogue for those that watch, as server-sent events (WHATWG HTML, section 9.2).

Data in: directories, one after another. Data out: text of event streams. All changes between two looks make one batch; only the last of
its events carries an id, so that a client that is cut off within a batch gets the batch again. An id is the index of the batch and the
history that it belongs to: one of another history (another agent, another life of it) cannot be resumed from. A history is kept as long as
somebody watches and `LINGER_S` longer; what has happened meanwhile without a watcher is one batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import NamedTuple

from plait.serve.consul_backend import CatalogBackend
from plait.serve.consul_http import set_within
from plait.services.changes import Difference, Wanted, differences
from plait.services.directory import Directory

log = logging.getLogger("plait.events")
QUEUE_BYTES = 1 << 20
"""That may wait for one client; one that lags further behind is cut off."""
HISTORY_BYTES = 4 << 20
HEARTBEAT_S = 15.0
LINGER_S = 300.0
_LOOK_S = 60.0


class _Told(NamedTuple):
    """One difference, its sides without their bodies, which are JSON here, from behind the first brace on."""

    difference: Difference
    before: bytes
    after: bytes


class _Batch(NamedTuple):
    number: int
    told: tuple[_Told, ...]
    size: int


class Watcher:
    """One client. `wake` is set when there is something for it, or it is cut off."""

    def __init__(self, wanted: Wanted, max_bytes: int) -> None:
        self.wanted, self._max_bytes = wanted, max_bytes
        self.wake = asyncio.Event()
        self.cut = False
        self._waiting: list[bytes] = []
        self._size = 0

    @property
    def waits(self) -> bool:
        """Whether there is text for it."""
        return bool(self._waiting)

    def offer(self, text: bytes) -> None:
        if self.cut or not text:
            return
        self._waiting.append(text)
        self._size += len(text)
        if self._size > self._max_bytes:
            self.drop()
        self.wake.set()

    def drop(self) -> None:
        """Cut the client off."""
        self.cut, self._waiting, self._size = True, [], 0
        self.wake.set()

    def taken(self) -> bytes:
        """All that waits."""
        text = b"".join(self._waiting)
        self._waiting, self._size = [], 0
        return text


class EventHub:
    """Used from the loop only. `directory` gives the present one."""

    def __init__(self, backend: CatalogBackend, directory: Callable[[], Directory], datacenter: str) -> None:
        self._backend, self._directory, self._datacenter = backend, directory, datacenter
        self.watchers: set[Watcher] = set()
        self.queue_bytes, self.history_bytes, self.heartbeat_s, self.linger_s = QUEUE_BYTES, HISTORY_BYTES, HEARTBEAT_S, LINGER_S
        self._seen: Directory | None = None
        self._life = ""
        self._index = self._floor = self._size = 0
        self._history: deque[_Batch] = deque()
        self._follower: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None

    async def stream(self, wanted: Wanted, last_id: str) -> AsyncGenerator[bytes]:
        """The text of one client's stream, from the event that `last_id` names ("": none), until the client goes or is cut off."""
        with self._watching(wanted) as watcher:
            yield b"retry: 1000\n" + self._begun(wanted, last_id)
            while not watcher.cut:
                if text := watcher.taken():
                    yield text
                else:
                    await set_within(watcher.wake, self.heartbeat_s)
                    if not watcher.waits and not watcher.cut:
                        yield b": heartbeat\n" + self._id(self._index)
            yield b": cut off\n\n"

    @contextlib.contextmanager
    def _watching(self, wanted: Wanted) -> Iterator[Watcher]:
        """A watcher that is offered all that happens after the present index."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._look()
        watcher = Watcher(wanted, self.queue_bytes)
        self.watchers.add(watcher)
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(self._follow())
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)
            if not self.watchers:
                self._follower.cancel()
                self._end = asyncio.get_running_loop().call_later(self.linger_s, self._forget)

    async def _follow(self) -> None:
        try:
            while True:
                self._look()
                await self._backend.changed(_LOOK_S)
        except Exception:
            log.exception("events_failed")
            self._forget()
            for watcher in self.watchers:
                watcher.drop()

    def _forget(self) -> None:
        self._seen, self._end = None, None
        self._history.clear()
        self._size = 0

    # --- what happens

    def _look(self) -> None:
        """Take the present directory over; what is different goes into the history and to all who want it."""
        directory = self._directory()
        before, self._seen = self._seen, directory
        if before is None:
            self._life = secrets.token_hex(4)
            self._index = self._floor = max(directory.snapshot.revision, 1)
        elif before is not directory:
            told = tuple(_told(difference) for difference in differences(before, directory, self._datacenter))
            if told:
                self._tell(told, directory.snapshot.revision)

    def _tell(self, told: tuple[_Told, ...], revision: int) -> None:
        self._index = max(revision, self._index + 1)
        batch = _Batch(self._index, told, sum(len(one.before) + len(one.after) for one in told))
        self._history.append(batch)
        self._size += batch.size
        while self._size > self.history_bytes:
            gone = self._history.popleft()
            self._floor, self._size = gone.number, self._size - gone.size
        texts: dict[Wanted, bytes] = {}
        for watcher in self.watchers:
            if watcher.wanted not in texts:
                texts[watcher.wanted] = self._text(batch, watcher.wanted)
            watcher.offer(texts[watcher.wanted])

    def _begun(self, wanted: Wanted, last_id: str) -> bytes:
        """What a client gets first: what it has missed, or that it must read everything anew."""
        index, _, life = last_id.partition("-")
        known = int(index) if index.isascii() and index.isdecimal() and len(index) <= 20 else -1
        if life == self._life and self._floor <= known <= self._index:
            missed = b"".join(self._text(batch, wanted) for batch in self._history if batch.number > known)
            return missed + self._id(self._index)
        reason = "history is gone" if last_id else "begin"
        data = json.dumps({"Index": self._index, "Reason": reason}, separators=(",", ":"))
        return f"event: reset\ndata: {data}\n".encode() + self._id(self._index)

    def _id(self, index: int) -> bytes:
        """The end of a block, which says that all until `index` is told."""
        return f"id: {index}-{self._life}\n\n".encode()

    def _text(self, batch: _Batch, wanted: Wanted) -> bytes:
        """The events of a batch that are wanted, "" if there are none."""
        events = []
        for one in batch.told:
            seen = wanted.seen(one.difference)
            if seen is not None:
                change, side = seen
                body = one.after if side is one.difference.after else one.before
                events.append(f'event: {one.difference.kind}\ndata: {{"Index":{batch.number},"Change":"{change}",'.encode() + body + b"\n")
        return b"\n".join(events) + self._id(batch.number) if events else b""


def _told(difference: Difference) -> _Told:
    sides = (difference.before, difference.after)
    bodies = [json.dumps(side.body, separators=(",", ":")).encode()[1:] if side else b"" for side in sides]
    return _Told(Difference(difference.kind, *(side and side._replace(body={}) for side in sides)), *bodies)
