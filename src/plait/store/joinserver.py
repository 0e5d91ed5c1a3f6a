# SPDX-License-Identifier: Apache-2.0
"""Lets hosts with a token into the cluster: a TLS listener of its own, beside that of the store.

Data in: first a token's id, answered by the CA's certificate; then, on a connection that the joiner has verified by it, the token's secret,
a signing request and the node's name and id. Data out: a certificate and where the store is. Whoever has no valid token gets no word: the
connection is closed. Attempts are limited per source address. The token is used up by the very transaction that reserves the name.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from plait.model.addr import at_port
from plait.model.cluster import Node
from plait.model.errors import Conflict, NotFound, PlaitError
from plait.store.api import Compare, Delete, Item, Put, Store
from plait.store.codec import decode, encode
from plait.store.listener import Limits, TlsServer, plain
from plait.store.peek import Peek, Peeked, peeked_parts
from plait.store.pki import check_identity, sign_in_child
from plait.store.protocol import Frames, Message, ProtocolError, frame
from plait.store.tls import CA_CERT, der_of
from plait.store.token import TokenRecord, admits, token_key

log = logging.getLogger("plait.store")

PORT = 7471
MAX_FRAME = 64 * 1024
READ = MAX_FRAME
"""Bytes that are read at once."""
STEP_TIMEOUT = 20.0
"""Seconds for one connection, signing included."""
ATTEMPTS, WINDOW = 20, 60.0
"""Failed connections of one source address in so many seconds, after which it is not heard."""
_SOURCES = 1024
"""Source addresses remembered."""
_RESERVED_S = 120.0
"""Seconds that a name stays reserved for its joiner, until its agent has written its node record."""


class AskCa(Message, frozen=True, tag="ask-ca"):
    token_id: str


class Ca(Message, frozen=True, tag="ca"):
    der: bytes


class Join(Message, frozen=True, tag="join"):
    token_id: str
    secret: str
    csr: bytes
    node_name: str
    node_id: str


class Joined(Message, frozen=True, tag="joined"):
    """`store` as "host:port"; `info` whatever the cluster tells a new node."""

    certificate: bytes
    store: str
    info: dict[str, str]


class Refused(Message, frozen=True, tag="refused"):
    """Said only to a joiner with a valid token."""

    text: str


join_server_decoder: msgspec.msgpack.Decoder[AskCa | Join | Peek] = msgspec.msgpack.Decoder(AskCa | Join | Peek)
join_client_decoder: msgspec.msgpack.Decoder[Ca | Joined | Refused | Peeked] = msgspec.msgpack.Decoder(Ca | Joined | Refused | Peeked)

M = TypeVar("M")


async def read_message(reader: asyncio.StreamReader, frames: Frames[M]) -> M | None:
    """The next message; None if the peer closes first. Raises ProtocolError for anything else."""
    while True:
        data = await reader.read(READ)
        if not data:
            return None
        for message in frames.feed(data):
            return message


class JoinServer(TlsServer):
    """Serves joins. `open` binds, `run` serves until cancelled. `directory` is that of the node with the CA key.

    `context` is that of `tls.ssl_context_join_server`; `store_address` what joiners are told ("host:port"), by default the address
    they reached this server at, port 7470; `now` the wall clock.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        store_address: Callable[[], str] = lambda: "",
        store_port: int = 7470,
        info: dict[str, str] | None = None,
        limits: Limits | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._directory = store, directory
        self._store_address, self._store_port, self._info = store_address, store_port, info or {}
        self._now, self._attempts = now, _Attempts(clock)
        super().__init__(host, port, context, limits or Limits(connections=64, handshakes=32, handshakes_per_source=8))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = plain(writer.get_extra_info("peername")[0])
        if not self._attempts.allowed(source):
            return
        reached = plain(writer.get_extra_info("sockname")[0])
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                request = await read_message(reader, Frames(join_server_decoder, MAX_FRAME))
                answers = await self._answer(request, reached)
                if answers is None:
                    self._attempts.failed(source)
                    return
                for answer in answers:
                    writer.write(frame(answer))
                    await writer.drain()
                await reader.read(1)
        except (ProtocolError, TimeoutError, PlaitError, OSError) as error:
            self._attempts.failed(source)
            log.info("join_failed", extra={"peer": source, "error": str(error)})

    async def _answer(self, request: AskCa | Join | Peek | None, reached: str) -> Iterable[Message] | None:
        """What to say; None: nothing, for who holds no valid token."""
        if request is None:
            return None
        key = token_key(request.token_id)
        try:
            item = await self._store.get(key)
        except PlaitError as error:
            log.warning("join_unchecked", extra={"error": str(error)})
            return None
        if item is None:
            return None
        if isinstance(request, AskCa):
            return [Ca(der_of((self._directory / CA_CERT).read_text()))]
        if not admits(decode(TokenRecord, item.value, key), request.secret, self._now()):
            return None
        if isinstance(request, Peek):
            return peeked_parts((await self._store.list("")).items)
        try:
            joined = await self._admit(request, item, reached)
            return [joined] if joined is not None else None
        except Conflict as error:
            return [Refused(str(error))]
        except NotFound:
            return None

    async def _admit(self, request: Join, token: Item, reached: str) -> Joined | None:
        """Sign, then use the token and reserve the name in one transaction; None if somebody else used the token meanwhile."""
        check_identity(request.node_name, request.node_id)
        compares, puts = await self._reserve(request.node_name, request.node_id)
        certificate = await sign_in_child(self._directory, request.csr, request.node_name, request.node_id)
        result = await self._store.txn([Compare(token.key, token.mod_revision), *compares], [Delete(token.key), *puts])
        if not result.ok:
            if await self._store.get(token.key) is None:
                return None
            raise Conflict(f"join as {request.node_name}: the node of that name changed meanwhile; try again")
        log.info("node_admitted", extra={"node": request.node_name, "id": request.node_id})
        return Joined(certificate, self._store_address() or at_port(reached, self._store_port), self._info)

    async def _reserve(self, name: str, node_id: str) -> tuple[list[Compare], list[Put]]:
        """Compares under which `name` is free or this node's own, and the put that reserves it. Raises Conflict naming both ids."""
        node_key, joining_key = f"nodes/{name}", f"joining/{name}"
        node, joining = await self._store.get(node_key), await self._store.get(joining_key)
        holder = decode(Node, node.value, node_key).id if node else decode(str, joining.value, joining_key) if joining else node_id
        if holder != node_id:
            raise Conflict(
                f"join as {name}: the cluster has a node {name} with id {holder} already, this host's id is {node_id}; "
                "choose another name, or remove the old node first"
            )
        lease = await self._store.grant(_RESERVED_S)
        compares = [Compare(key, item.mod_revision if item else 0) for key, item in ((node_key, node), (joining_key, joining))]
        return compares, [Put(joining_key, encode(node_id), lease)]


class _Attempts:
    """Counts failures per source address in a window. Bounded: the oldest source is forgotten first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def allowed(self, source: str) -> bool:
        since, count = self._failures.get(source, (0.0, 0))
        return count < ATTEMPTS or self._clock() - since > WINDOW

    def failed(self, source: str) -> None:
        now = self._clock()
        since, count = self._failures.pop(source, (now, 0))
        if now - since > WINDOW:
            since, count = now, 0
        self._failures[source] = since, count + 1
        if len(self._failures) > _SOURCES:
            self._failures.popitem(last=False)
