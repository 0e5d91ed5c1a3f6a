# SPDX-License-Identifier: Apache-2.0
"""The client's end of one connection to the store.

Data in: requests of this process, bytes of the server. Data out: each answer to who asked. It has no task of its own: bytes are taken as
they come, pings go by a timer, and a server that says nothing for about three seconds is given up.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from plait.model.errors import Compacted, StoreUnavailable
from plait.store.api import Change
from plait.store.protocol import (
    VERSION,
    Answer,
    Cancel,
    Changes,
    Failure,
    Frames,
    Hello,
    Items,
    Message,
    Ping,
    ProtocolError,
    Result,
    ToClient,
    Watch,
    Welcome,
    WireItem,
    client_decoder,
    frame,
    unpack_change,
    unpack_error,
)

PING = 1.0
"""Seconds between pings."""
MISSED = 3
"""Pings without any byte of the server in between, after which it counts as dead."""
MAX_LAG = 20_000
"""Changes that a watch may hold unread before it ends with Compacted."""


@dataclass(slots=True)
class WatchQueue:
    """What has arrived for one watch. `error` ends it, after the changes before it are read."""

    changes: deque[Change] = field(default_factory=deque)
    pending: list[Change] = field(default_factory=list)
    whole: int = 0
    error: Exception | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self) -> tuple[Change, ...]:
        """All changes that are here, at least one; waits for them. Raises the error that ended the watch."""
        while not self.changes:
            if self.error is not None:
                raise self.error
            self.arrived.clear()
            await self.arrived.wait()
        taken = tuple(self.changes)
        self.changes.clear()
        return taken

    def end(self, error: Exception) -> None:
        self.error = self.error or error
        self.arrived.set()


class Link(asyncio.Protocol):
    """One connection. Usable once `ready` is done, which raises what the server refuses it for; `lost` then tells why it ended, None while
    it lives. `run` is this agent's, `server_run` that of the one that serves (see `protocol.Hello`)."""

    def __init__(self, describe: str, run: str = "") -> None:
        self._describe, self._run = describe, run
        self.server_run = ""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: StoreUnavailable | None = None
        self._transport: asyncio.Transport | None = None
        self._frames: Frames[ToClient] = Frames(client_decoder)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._parts: dict[int, list[WireItem]] = {}
        self._watches: dict[int, WatchQueue] = {}
        self._last_id = 0
        self._heard = False
        self._missed = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- requests

    async def call(self, make: Callable[[int], Message]) -> Answer:
        """Send the request that `make` gives for an id; its answer, parts joined. Raises the server's error, or StoreUnavailable."""
        number = self._next_id()
        data = frame(make(number))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._write(data)
            return await future
        finally:
            self._calls.pop(number, None)
            self._parts.pop(number, None)

    def watch(self, prefix: str, from_revision: int) -> tuple[int, WatchQueue]:
        """Start a watch; `unwatch` ends it."""
        number = self._next_id()
        self._write(frame(Watch(number, prefix, from_revision)))
        queue = self._watches[number] = WatchQueue()
        return number, queue

    def unwatch(self, number: int) -> None:
        """Forget the watch and tell the server, if it is there still. Idempotent."""
        if self._watches.pop(number, None) is not None and self.lost is None:
            self._write(frame(Cancel(number)))

    def close(self, why: StoreUnavailable) -> None:
        """End the connection; everything that waits on it raises `why`. Idempotent."""
        if self.lost is not None:
            return
        self.lost = why
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(why)
            self.ready.exception()  # whoever waited gave up, so nobody asks
        for call in self._calls.values():
            if not call.done():
                call.set_exception(why)
        for queue in self._watches.values():
            queue.end(why)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _write(self, data: bytes) -> None:
        if self.lost is not None:
            raise self.lost
        assert self._transport is not None, "a link is used before it is ready"
        self._transport.write(data)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.lost is not None:
            self._transport.abort()
            return
        self._transport.write(frame(Hello(VERSION, self._run)))
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("the connection was lost" if self.ready.done() else "the server closed the connection without an answer", exc)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except ProtocolError as error:
            self._end("the server sent what is no answer", error)

    def _end(self, why: str, cause: Exception | None) -> None:
        hint = (
            "retry"
            if self.ready.done()
            else "if it stays so, this node's certificate is expired or of another cluster: check clocks, join again"
        )
        self.close(StoreUnavailable(f"{self._describe}: {why}" + (f" ({cause})" if cause else "") + f"; {hint}"))

    def _take(self, message: ToClient) -> None:
        match message:
            case Welcome(run=run):
                self.server_run = run
                if not self.ready.done():
                    self.ready.set_result(None)
            case Ping():
                pass
            case Failure() if not self.ready.done():
                self.ready.set_exception(unpack_error(message))
            case Changes():
                self._take_changes(message)
            case Items(id=number, more=True):
                if number in self._calls:
                    self._parts.setdefault(number, []).extend(message.items)
            case Failure(id=number) if number in self._watches:
                self._watches.pop(number).end(unpack_error(message))
            case Items() | Result() | Failure():
                self._answer(message)

    def _answer(self, message: Items | Result | Failure) -> None:
        call = self._calls.get(message.id)
        if call is None or call.done():
            return
        if isinstance(message, Failure):
            call.set_exception(unpack_error(message))
        elif isinstance(message, Items) and message.id in self._parts:
            call.set_result(Items(message.id, (*self._parts.pop(message.id), *message.items), message.revision))
        else:
            call.set_result(message)

    def _take_changes(self, message: Changes) -> None:
        queue = self._watches.get(message.id)
        if queue is None:
            return
        queue.pending.extend(unpack_change(change) for change in message.changes)
        if len(queue.changes) + len(queue.pending) > MAX_LAG:
            queue.end(Compacted(f"{self._describe}: a watch left more than {MAX_LAG} changes unread; list again and watch from there"))
            self.unwatch(message.id)
        elif not message.more:
            queue.changes.extend(queue.pending)
            queue.pending.clear()
            queue.arrived.set()

    # --- is the server alive?

    def _arm(self) -> None:
        delay = PING * random.uniform(0.9, 1.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._ping)

    def _ping(self) -> None:
        """Counts silent periods, not seconds: a pause of this process is one period, in which the server's bytes still wait."""
        self._missed = 0 if self._heard else self._missed + 1
        self._heard = False
        if self._missed >= MISSED:
            self._end("the server does not answer", None)
            return
        self._write(frame(Ping()))
        self._arm()
