# SPDX-License-Identifier: Apache-2.0
"""Serves a store to the other agents: one mutually authenticated TLS connection per agent carries all its requests and watches.

Data in: requests (protocol.py) from peers whose certificate is of this cluster. Data out: answers and changes. The server says nothing
before a valid Hello. A peer that breaks the protocol, falls silent or does not read is cut; nothing is buffered for it without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import cast

from plait.model.errors import Conflict, PlaitError
from plait.store.api import Change
from plait.store.listener import Limits, TlsServer, plain
from plait.store.local import LocalStore
from plait.store.protocol import (
    VERSION,
    Cancel,
    Frames,
    Get,
    Grant,
    Hello,
    Keepalive,
    List,
    Message,
    Ping,
    ProtocolError,
    Request,
    Result,
    Revoke,
    ToServer,
    Txn,
    Watch,
    Welcome,
    change_parts,
    frame,
    items_parts,
    pack_error,
    server_decoder,
    unpack_txn,
)
from plait.store.tls import peer_identity

log = logging.getLogger("plait.store")

PORT = 7470
SILENCE = 6.0
"""Seconds without a byte after which a client counts as dead; it pings every second."""
DRAIN = 5.0
"""Seconds that a client may take to read what fills its connection's buffer."""
MAX_REQUESTS = 256
"""Requests and watches of one connection at a time; more are read only when some are answered."""
FRESH = 0.5
"""Seconds in which what a peer had sent before arrives, and so does the end of a process: what comes later is a sign of life."""
_READ = 64 * 1024
_UNREAD = 64 * 1024
"""Bytes that wait for a peer to read before anybody waits for it: a change is told to hundreds of peers, of which each takes the whole at
once (to arm and disarm the time limit takes 9 us, measured)."""


class StoreServer(TlsServer):
    """Store seam over the network. `open` binds, `run` serves until cancelled."""

    def __init__(
        self, store: LocalStore, host: str, port: int, context: ssl.SSLContext, limits: Limits | None = None, run: str = ""
    ) -> None:
        """`context` is that of `tls.ssl_context_server`; `run` this agent's own, as in `protocol.Hello`."""
        self._store, self._run, self._told = store, run, _Told()
        self._runs: dict[str, _Session] = {}
        super().__init__(host, port, context, limits)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = _Session(self._store, self._told, reader, writer, self._admit)
        try:
            await session.serve()
        finally:
            if self._runs.get(session.node_id) is session:
                del self._runs[session.node_id]

    async def _admit(self, session: _Session) -> str:
        """This server's run, for a session that may go on. Conflict if another run of the same node lives; an older connection of the same
        run ends."""
        while session.run and (other := self._runs.get(session.node_id)) is not None and not other.over:
            if other.run == session.run:
                other.cut()
                break
            if await other.lives():
                raise Conflict(
                    f"this host says that it is node {session.peer!r}, and so does another one that is connected from {other.source}: "
                    "one is a copy; there, `plait down --purge` and `plait join` make it a node of its own, and the other keeps everything"
                )
        if session.run:
            self._runs[session.node_id] = session
        return self._run


Admit = Callable[["_Session"], Awaitable[str]]
"""Lets a session go on and gives the server's run; raises Conflict."""


class _Told:
    """The frames of the changes that were told last: hundreds of watches are told of the same."""

    def __init__(self) -> None:
        self._changes: tuple[Change, ...] = ()
        self._frames: dict[int, bytes] = {}

    def frame(self, number: int, changes: tuple[Change, ...]) -> bytes:
        """What tells the watch of this number of them."""
        if changes is not self._changes:
            self._changes, self._frames = changes, {}
        if number not in self._frames:
            self._frames[number] = b"".join(frame(part) for part in change_parts(number, changes))
        return self._frames[number]


class _Session:
    """One agent's connection. `peer` and `node_id` are those of its certificate, `source` the address that it comes from."""

    def __init__(self, store: LocalStore, told: _Told, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, admit: Admit) -> None:
        self._store, self._told, self._reader, self._writer, self._admit = store, told, reader, writer, admit
        self.run, self.source = "", plain((writer.get_extra_info("peername") or ("?",))[0])
        self._heard = asyncio.Event()
        self.over = False
        self._sending = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._frames: Frames[ToServer] = Frames(server_decoder)
        tls = writer.get_extra_info("ssl_object")
        self.peer, self.node_id = peer_identity(cast(ssl.SSLObject, tls)) if tls is not None else ("", "")

    def cut(self) -> None:
        """End it without a word."""
        self._writer.transport.abort()

    async def lives(self) -> bool:
        """Whether the peer says something that it had not sent before it was asked; False when the connection ends first, at the latest
        after SILENCE. A host that was started anew meanwhile refuses what it gets on a connection of before."""
        with contextlib.suppress(OSError, TimeoutError):
            await self._send([Ping()])
        await asyncio.sleep(FRESH)
        if not self.over:
            self._heard.clear()
            await self._heard.wait()
        return not self.over

    async def serve(self) -> None:
        """Serve until the peer goes, is cut, or the server stops."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._receive(group)
        except* (OSError, TimeoutError, ProtocolError, asyncio.IncompleteReadError) as errors:
            why = errors.exceptions[0]
            log.info("store_client_cut", extra={"peer": self.peer, "error": f"{type(why).__name__}: {why}"})
        finally:
            self.over = True
            self._heard.set()
            self._writer.transport.abort()

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        greeted = False
        while True:
            async with asyncio.timeout(SILENCE):
                data = await self._reader.read(_READ)
            if not data:
                raise ConnectionResetError("the peer closed the connection")
            self._heard.set()
            for message in self._frames.feed(data):
                if greeted:
                    await self._take(group, message)
                    continue
                if not isinstance(message, Hello) or message.version != VERSION:
                    raise ProtocolError("no valid hello")
                greeted, self.run = True, message.run
                try:
                    await self._send([Welcome(VERSION, await self._admit(self))])
                except Conflict as error:
                    log.warning("store_client_refused", extra={"peer": self.peer, "source": self.source, "error": str(error)})
                    await self._send([pack_error(0, error)])
                    raise ConnectionAbortedError("the node is connected already") from error

    async def _take(self, group: asyncio.TaskGroup, message: ToServer) -> None:
        match message:
            case Hello():
                raise ProtocolError("a second hello")
            case Ping():
                await self._send([message])
            case Cancel(id=number):
                task = self._watches.pop(number, None)
                if task is not None:
                    task.cancel()
            case _:
                async with asyncio.timeout(SILENCE):
                    await self._slots.acquire()
                task = group.create_task(self._answer(message))
                if isinstance(message, Watch):
                    self._watches[message.id] = task

    async def _answer(self, request: Request) -> None:
        try:
            if isinstance(request, Watch):
                await self._watch(request)
            else:
                await self._request(request)
        except PlaitError as error:
            await self._send([pack_error(request.id, error)])
        finally:
            self._slots.release()
            if isinstance(request, Watch):
                self._watches.pop(request.id, None)

    async def _request(self, request: Request) -> None:
        store = self._store
        match request:
            case Get(id=number, key=key):
                item = await store.get(key)
                await self._send(items_parts(number, () if item is None else (item,), 0))
            case List(id=number, prefix=prefix):
                listing = await store.list(prefix)
                await self._send(items_parts(number, listing.items, listing.revision))
            case Txn(id=number):
                result = await store.txn(*unpack_txn(request))
                await self._send([Result(number, result.ok, result.revision)])
            case Grant(id=number, ttl=ttl):
                await self._send([Result(number, number=await store.grant(ttl))])
            case Keepalive(id=number, lease=lease):
                await self._send([Result(number, await store.keepalive(lease))])
            case Revoke(id=number, lease=lease):
                await store.revoke(lease)
                await self._send([Result(number)])

    async def _watch(self, watch: Watch) -> None:
        cursor = watch.from_revision
        while True:
            changes, cursor = self._store.since(watch.prefix, cursor)
            if changes:
                await self._send(change_parts(watch.id, changes))
            else:
                cursor = await self._store.follow(watch.prefix, cursor, partial(self._take_up, watch.id))

    def _take_up(self, number: int, changes: tuple[Change, ...]) -> bool:
        """Tell a watch of them at once, if they are few and the peer reads."""
        whole = self._told.frame(number, changes)
        free = not self._sending.locked() and self._writer.transport.get_write_buffer_size() + len(whole) <= _UNREAD
        if free:
            self._writer.write(whole)
        return free

    async def _send(self, messages: Iterable[Message]) -> None:
        """Write the frames of one answer; wait, not long, while the peer does not read."""
        async with self._sending:
            for message in messages:
                self._writer.write(frame(message))
                if self._writer.transport.get_write_buffer_size() > _UNREAD:
                    async with asyncio.timeout(DRAIN):
                        await self._writer.drain()
