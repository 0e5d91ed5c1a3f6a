# SPDX-License-Identifier: Apache-2.0
"""A TLS listener that strangers cannot exhaust.

Data in: TCP connections. Data out: one handler call per connection whose handshake succeeded. Handshakes are bounded in time, in number
and per source address, established connections in number; what is beyond a bound is closed without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from plait.model.errors import ConfigError, PlaitError

log = logging.getLogger("plait.store")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a listener: connections after and handshakes before the peer is known, those of one source address, seconds for one."""

    connections: int = 1024
    handshakes: int = 64
    handshakes_per_source: int = 16
    handshake_s: float = 5.0


class TlsListener:
    """Accepts on one address. `open` binds, `run` serves until cancelled, `close` stops accepting."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, handler: Handler, limits: Limits | None = None) -> None:
        self.host, self.port = host, port
        self._context, self._handler, self._limits = context, handler, limits or Limits()
        self._socket: socket.socket | None = None
        self._greeting: Counter[str] = Counter()
        self._served = 0

    def open(self) -> None:
        """Bind and listen; `port` 0 becomes the port chosen. Raises ConfigError if the address cannot be had."""
        try:
            self._socket = _listening(self.host, self.port)
        except OSError as error:
            raise ConfigError("listen address", f"{self.host}:{self.port}", f"cannot be used: {error.strerror or error}") from error
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self) -> None:
        """Serve until cancelled; connections end with it."""
        if self._socket is None:
            self.open()
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        connection, peer = await loop.sock_accept(self._socket)
                    except OSError as error:
                        log.warning("accept_failed", extra={"port": self.port, "error": str(error)})
                        await asyncio.sleep(0.1)
                        continue
                    source = plain(peer[0])
                    if self._admit(source):
                        group.create_task(self._serve(connection, source))
                    else:
                        connection.close()
        finally:
            self.close()

    def _admit(self, source: str) -> bool:
        """Count one more handshake from `source` unless a bound is reached."""
        limits = self._limits
        if (
            self._served >= limits.connections
            or self._greeting.total() >= limits.handshakes
            or self._greeting[source] >= limits.handshakes_per_source
        ):
            return False
        self._greeting[source] += 1
        return True

    async def _serve(self, connection: socket.socket, source: str) -> None:
        try:
            streams = await self._greet(connection)
        finally:
            self._greeting[source] -= 1
            if not self._greeting[source]:
                del self._greeting[source]
        if streams is None:
            return
        self._served += 1
        try:
            await self._handler(*streams)
        except (OSError, PlaitError) as error:
            log.info("connection_failed", extra={"peer": source, "error": str(error)})
        finally:
            self._served -= 1
            streams[1].transport.abort()

    async def _greet(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The streams of `connection` after the handshake; None if it failed. Nothing tells the peer why."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=self._limits.handshake_s,
            )
        except (OSError, TimeoutError):
            connection.close()
            return None
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class TlsServer:
    """A server of one protocol behind a listener; `context` is that of `tls.ssl_context_server`. `open` binds, `run` serves until
    cancelled."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, limits: Limits | None = None) -> None:
        self._listener = TlsListener(host, port, context, self._connection, limits)

    @property
    def port(self) -> int:
        return self._listener.port

    def open(self) -> None:
        """Bind now, so that `port` is known. Raises ConfigError if the address cannot be had."""
        self._listener.open()

    async def run(self) -> None:
        """Serve until cancelled. What stands behind the server stays open."""
        await self._listener.run()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


def plain(address: str) -> str:
    """An address as its owner knows it: a socket of both families shows those of IPv4 as IPv6 ones (RFC 4291, section 2.5.5.2)."""
    return address.removeprefix("::ffff:")


def _listening(host: str, port: int) -> socket.socket:
    """A socket on `host`; "" is every address of both families, or of IPv4 where the host has no other."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
