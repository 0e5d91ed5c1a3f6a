# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 server: the listening socket, all connections, and what is shared among them.

Data in: an `App`, limits. Data out: answered connections. One timer looks at the deadlines of all connections while there are any, so that
a request sets no timer of its own; those that a change wakes are answered in portions, between which everything else goes on.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from plait.http.connection import Connection
from plait.http.message import Answer, App, Request, Response, Stamp, http_date
from plait.http.reader import Allowed
from plait.http.readiness import Readiness
from plait.http.wire import Door

log = logging.getLogger("plait.http")
BUFFER_BYTES = 64 * 1024
STOP_S = 1.0
"""How long a stop waits for answers under way, and again for what it cancelled. Blocking queries end at once."""
_PORTION = 100
_BACKLOG = 1024
_RESERVE = 512
"""File descriptors that the rest of the agent needs."""
_LEAST = 64
_COMPLAIN_S = 60.0
_KNOWN, _KNOWN_BYTES = 2048, 512
_READS = frozenset(("GET", "HEAD", "OPTIONS"))
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one server, in bytes and seconds. Times hold to within `sweep_s`."""

    connections: int = 16_384
    """At most; fewer if the process may not open as many files."""
    head: int = 32 * 1024
    """Of request line and header fields."""
    bodies: int = 64 << 20
    """Of all unfinished requests together; a single one may be larger."""
    head_s: float = 10.0
    """From the first byte of a request until its header section is there."""
    body_s: float = 60.0
    """From there until the body is, and a second more for each `body_rate` bytes that are announced."""
    body_rate: int = 256 * 1024
    idle_s: float = 300.0
    """Between two requests."""
    stall_s: float = 10.0
    """For which a client may take nothing of what is sent to it."""
    linger_s: float = 2.0
    """For which a refused client may go on sending, so that it sees why."""
    sweep_s: float = 1.0
    """Between two looks at all connections."""


class HttpServer:
    """`await start(host, port)`, then `port`, and `await serve(sock)`, as often as wanted; `stop` ends it. Used from the loop only.
    `opened` is told the socket of each connection as it comes."""

    def __init__(self, app: App, limits: Limits | None = None, opened: Callable[[socket.socket], None] | None = None) -> None:
        self.app, self.limits, self._opened = app, limits or Limits(), opened
        self.connections: dict[Connection, None] = {}
        """All that are open, the oldest first, and those that are gone but whose request is not done."""
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        """What comes in, of whichever connection it is, until that has taken it: before anything else runs."""
        self.known: dict[bytes, tuple[Request, int]] = {}
        """What a head means with which not more than its body came, and the length of that: clients send the same again and again."""
        self.held = 0
        """Bytes of the bodies of unfinished requests."""
        self.allowed = Allowed(self.limits.head, app.max_body, self._hold, app.rejected)
        self.now = 0.0
        """The loop's time at the last sweep."""
        self.stamp = Stamp("")
        """With the date of the last sweep."""
        self.fields: tuple[tuple[str, str], ...] = ()
        """Header fields of every answer from the next sweep on, unless it has others of that name itself."""
        self.may_write: Callable[[str], bool] | None = None
        """Whether other requests than GET, HEAD and OPTIONS are taken from an IP address ("" = of a Unix socket); None: from all."""
        self.port = 0
        """Of the address that was first listened on."""
        self.answered = [0] * 6
        """Answers by the first digit of their status."""
        self.parked = 0
        """Requests that wait for a change without a task."""
        self._max = self.limits.connections
        self._woken: list[Connection] = []
        self._listening: list[asyncio.Server | Door] = []
        self._readiness: Readiness | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._no_idle_before = self._quiet_until = 0.0
        self.stopping = False

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen there too, with `tls` for HTTPS; port 0 chooses a free one. OSError if that is taken. The process may open as many files
        as the system lets it from then on."""
        loop = asyncio.get_running_loop()
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        self._max = min(self.limits.connections, max(_LEAST, files - _RESERVE))
        greet = partial(Connection, self)
        greet_s, end_s = (self.limits.head_s, self.limits.linger_s) if tls is not None else (None, None)
        server = await loop.create_server(
            greet, host, port, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=greet_s, ssl_shutdown_timeout=end_s, start_serving=False
        )
        self.port = self.port or server.sockets[0].getsockname()[1]
        if tls is not None:
            self._listening.append(server)
            await server.start_serving()
        else:  # what it bound is what is wanted of it
            bound = [sock.dup() for sock in server.sockets]
            server.close()
            for sock in bound:
                self._listen(sock)

    async def serve(self, sock: socket.socket) -> None:
        """Listen on a bound Unix socket too, which is closed in the end; its file stays."""
        self._listen(sock)

    def _listen(self, sock: socket.socket) -> None:
        sock.listen(_BACKLOG)
        self._readiness = self._readiness or Readiness()
        self._listening.append(Door(self._readiness, sock, partial(Connection, self), self.buffer))

    async def stop(self) -> None:
        """Listen no more, let what is under way end for a moment, then cut it off. Idempotent, and no matter if it was never started."""
        self.stopping = True
        if not self._listening:
            return
        for listening in self._listening:
            listening.close()
        tasks = [task for connection in list(self.connections) if (task := connection.stop()) is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=STOP_S)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()

    def admit(self, connection: Connection, sock: socket.socket) -> bool:
        """Take a new connection. Whether there is room for what it asks; the oldest idle one makes room if need be."""
        room = not self.stopping and self._has_room()
        self.connections[connection] = None
        if self._timer is None:
            self._sweep()
        if self._opened is not None:
            self._opened(sock)
        return room

    def respond(self, request: Request, transport: asyncio.BaseTransport) -> Response:
        """The application's answer, if the client may ask for this (see `may_write`)."""
        if self.may_write is not None and request.method not in _READS:
            peer = transport.get_extra_info("peername")
            if not self.may_write(peer[0] if isinstance(peer, tuple) else ""):
                return self.app.rejected(403, "Access is restricted")
        return self.app.respond(request)

    def _has_room(self) -> bool:
        if len(self.connections) < self._max:
            return True
        if self.now >= self._no_idle_before:
            for connection in self.connections:
                if connection.idle:
                    connection.abort()
                    return True
            self._no_idle_before = self.now + self.limits.sweep_s
        if self.now >= self._quiet_until:
            self._quiet_until = self.now + _COMPLAIN_S
            log.warning("http_full", extra={"connections": len(self.connections)})
        return False

    def _hold(self, has: int, more: int) -> bool:
        if more > 0 and self.held > has and self.held + more > self.limits.bodies:
            return False
        self.held += more
        return True

    def remember(self, data: bytes, request: Request | Answer) -> None:
        """`data` between two requests was `request`."""
        head, end, body = data.partition(_HEAD_END)
        if len(head) <= _KNOWN_BYTES and isinstance(request, Request) and request.keep and request.body == body:
            if len(self.known) >= _KNOWN:
                self.known.clear()
            self.known[head + end] = request.with_body(b""), len(body)

    def recall(self, data: bytes) -> Request | None:
        """What `data` is between two requests, if it is one whole request with a head that is known."""
        start = data.find(_HEAD_END) + len(_HEAD_END)
        known = self.known.get(data[:start])
        if known is None or len(data) - start != known[1]:
            return None
        return known[0].with_body(data[start:]) if known[1] else known[0]

    def look_soon(self, connection: Connection) -> None:
        """Have a parked connection look again."""
        if not self._woken:
            asyncio.get_running_loop().call_soon(self._look)
        self._woken.append(connection)

    def _look(self) -> None:
        """At the first portion of them. The rest comes after what else is ready in the loop."""
        portion, self._woken = self._woken[:_PORTION], self._woken[_PORTION:]
        if self._woken:
            asyncio.get_running_loop().call_soon(self._look)
        for connection in portion:
            connection.look(False)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.now, self.stamp = loop.time(), Stamp(http_date(time.time()), self.fields)
        for connection in [connection for connection in self.connections if connection.deadline <= self.now]:
            connection.expire()
        self._timer = loop.call_later(self.limits.sweep_s, self._sweep) if self.connections else None
