# SPDX-License-Identifier: Apache-2.0
"""TCP side of the DNS child: streams of length-prefixed queries -> responses on the same stream (RFC 7766).

A client may send many queries without waiting (they are answered as they come, forwarded ones when their upstream answers).
Bounded are the connections, the time one may take for its next query, and the bytes that a slow reader leaves unread.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from plait.dns.answer import Pending
from plait.serve.dns_core import Core
from plait.serve.dns_reactor import GONE, READ, WRITE
from plait.serve.dns_socket import source

CONNECTIONS = 256
"""Most open at a time, over all listeners; one more closes the one whose last query is longest ago."""
IDLE_TIMEOUT = 10.0
"""Seconds without a complete query after which a connection is closed."""
UNSENT = 256 << 10
"""Bytes waiting for a slow reader beyond which nothing more is read from it."""
_CHUNK = 65536
Give = Callable[[socket.socket, bytes], None]
"""Gives somebody else a connection and the bytes of a query that is not complete yet. Raises OSError."""


class TcpServer:
    """All connections of all listeners, in the order of their last complete query."""

    def __init__(self, core: Core, *, limit: int = CONNECTIONS) -> None:
        self.core = core
        self._limit = limit
        self._connections: dict[_Connection, None] = {}
        self.give: Give | None = None

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def admit(self, sock: socket.socket, received: bytes = b"") -> None:
        """Serve a connected, non-blocking socket, of which `received` was read before."""
        if len(self._connections) >= self._limit:
            self.evict()
        self.core.counters.tcp_connections += 1
        self._connections[_Connection(self, sock, received)] = None

    def hand_over(self, give: Give) -> None:
        """Read from nobody any more, and give each connection away once everything that came on it is answered."""
        self.give = give
        for connection in list(self._connections):
            connection.settle()

    def evict(self) -> None:
        """Close the connection whose last query is longest ago, if there is any."""
        for connection in list(self._connections)[:1]:
            self.core.counters.tcp_evicted += 1
            connection.close()

    def used(self, connection: _Connection) -> None:
        """A complete query came on `connection`."""
        del self._connections[connection]
        self._connections[connection] = None

    def closed(self, connection: _Connection) -> None:
        del self._connections[connection]

    def next_deadline(self) -> float | None:
        """When `sweep` has something to do (time.monotonic), None while nobody is connected."""
        return next((connection.last_used + IDLE_TIMEOUT for connection in self._connections), None)

    def sweep(self, now: float) -> None:
        """Close the connections that have been idle for too long."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            next(iter(self._connections)).close()


class TcpListener:
    """Accepts from one listening socket."""

    def __init__(self, sock: socket.socket, server: TcpServer) -> None:
        self._server, self.sock = server, sock
        server.core.reactor.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        """Accept no more; connections that exist live on."""
        self._server.core.reactor.remove(self.sock.fileno())
        self.sock.close()

    def _ready(self, _events: int) -> None:
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # out of descriptors: make room, the client waits in the backlog
            self._server.evict()
            return
        sock.setblocking(False)
        self._server.admit(sock)


class _Connection:
    """One client: bytes received and not yet a query, responses not yet sent, forwarded queries not yet answered."""

    def __init__(self, server: TcpServer, sock: socket.socket, received: bytes) -> None:
        self.last_used = time.monotonic()
        self._server, self._sock, self._address = server, sock, source(sock)
        self._received, self._unsent = bytearray(received), bytearray()
        self._pending = 0
        self._finished = False
        self._open = True
        self._working = False
        self._events = READ
        server.core.reactor.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._server.core.reactor.remove(self._sock.fileno())
            self._sock.close()
            self._server.closed(self)

    def _ready(self, events: int) -> None:
        if events & GONE:
            self.close()
            return
        try:
            if events & READ:
                chunk = self._sock.recv(_CHUNK)
                self._finished = not chunk
                self._received += chunk
            self._work()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _work(self) -> None:
        """Answer complete queries as long as the reader keeps up, then wait for what is next. Raises OSError."""
        self._working = True
        while self._answer_received() and self._send():
            pass
        self._working = False
        if not self._unsent and not self._pending and (self._finished or self._server.give is not None):
            if self._server.give is not None and not self._finished:
                self._server.give(self._sock, bytes(self._received))
            self.close()
            return
        reads = not self._finished and len(self._unsent) < UNSENT and self._server.give is None
        events = (READ if reads else 0) | (WRITE if self._unsent else 0)
        if events != self._events:
            self._events = events
            self._server.core.reactor.change(self._sock.fileno(), events)

    def _answer_received(self) -> bool:
        """Answer complete queries up to the bound of unsent bytes. Returns whether there is something to send."""
        while len(self._unsent) < UNSENT and (data := self._next_query()) is not None:
            self._answer(data)
        return bool(self._unsent)

    def _send(self) -> bool:
        """Send what the socket takes. Returns whether that was all."""
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return False
        return not self._unsent

    def _next_query(self) -> bytes | None:
        """Take the next complete query from what was received."""
        end = 2 + int.from_bytes(self._received[:2], "big")
        if len(self._received) < end:
            return None
        data = bytes(self._received[2:end])
        del self._received[:end]
        self.last_used = time.monotonic()
        self._server.used(self)
        return data

    def _source(self, _slot: int) -> bytes:
        return self._address

    def _answer(self, data: bytes) -> None:
        """Raises OSError for a client that asks too often: its connection ends."""
        self._server.core.counters.tcp_queries += 1
        limiter = self._server.core.limiter
        if limiter.limits.client_rate and not limiter.admits(self._address):
            raise ConnectionAbortedError
        response = self._server.core.responder.reply(data, self._source, stream=True)
        if isinstance(response, bytes):
            self._append(response)
        elif isinstance(response, Pending):
            self._pending += 1
            self._server.core.later.resolve(response, data, self._answered_upstream, stream=True)
        else:
            self._server.core.counters.dropped += 1

    def _append(self, response: bytes) -> None:
        self._unsent += len(response).to_bytes(2, "big") + response

    def _answered_upstream(self, response: bytes) -> None:
        self._pending -= 1
        if not self._open:
            return
        self._append(response)
        if not self._working:  # else it was answered at once, and the loop that submitted it sends
            self.settle()

    def settle(self) -> None:
        """Do what can be done now."""
        try:
            self._work()
        except OSError:
            self.close()
