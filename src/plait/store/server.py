# SPDX-License-Identifier: Apache-2.0
"""Serves a store to the other agents: one mutually authenticated TLS connection per agent carries all its requests and watches.

Data in: requests (protocol.py) from peers whose certificate is of this cluster. Data out: answers and changes. The server says nothing
before a valid Hello. A peer that breaks the protocol, falls silent or does not read is cut; nothing is buffered for it without bound.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from contextlib import aclosing
from typing import cast

from plait.model.errors import PlaitError
from plait.store.api import Store
from plait.store.listener import Limits, TlsListener
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
_READ = 64 * 1024


class StoreServer:
    """Store seam over the network. `open` binds, `run` serves until cancelled."""

    def __init__(self, store: Store, host: str, port: int, context: ssl.SSLContext, limits: Limits | None = None) -> None:
        """`context` is that of `tls.ssl_context_server`."""
        self._store = store
        self._listener = TlsListener(host, port, context, self._connection, limits)

    @property
    def port(self) -> int:
        return self._listener.port

    def open(self) -> None:
        """Bind now, so that `port` is known. Raises ConfigError if the address cannot be had."""
        self._listener.open()

    async def run(self) -> None:
        """Serve until cancelled. The store stays open."""
        await self._listener.run()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Session(self._store, reader, writer).run()


class _Session:
    """One agent's connection."""

    def __init__(self, store: Store, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._store, self._reader, self._writer = store, reader, writer
        self._sending = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._frames: Frames[ToServer] = Frames(server_decoder)
        tls = writer.get_extra_info("ssl_object")
        self._peer = peer_identity(cast(ssl.SSLObject, tls))[0] if tls is not None else ""

    async def run(self) -> None:
        """Serve until the peer goes, is cut, or the server stops."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._receive(group)
        except* (OSError, TimeoutError, ProtocolError, asyncio.IncompleteReadError) as errors:
            why = errors.exceptions[0]
            log.info("store_client_cut", extra={"peer": self._peer, "error": f"{type(why).__name__}: {why}"})
        finally:
            self._writer.transport.abort()

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        greeted = False
        while True:
            async with asyncio.timeout(SILENCE):
                data = await self._reader.read(_READ)
            if not data:
                raise ConnectionResetError("the peer closed the connection")
            for message in self._frames.feed(data):
                if greeted:
                    await self._take(group, message)
                    continue
                if not isinstance(message, Hello) or message.version != VERSION:
                    raise ProtocolError("no valid hello")
                greeted = True
                await self._send([Welcome(VERSION)])

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
        async with aclosing(self._store.watch(watch.prefix, watch.from_revision)) as batches:  # type: ignore[type-var]
            async for changes in batches:
                await self._send(change_parts(watch.id, changes))

    async def _send(self, messages: Iterable[Message]) -> None:
        """Write the frames of one answer; wait, not long, while the peer does not read."""
        async with self._sending:
            for message in messages:
                self._writer.write(frame(message))
                async with asyncio.timeout(DRAIN):
                    await self._writer.drain()
