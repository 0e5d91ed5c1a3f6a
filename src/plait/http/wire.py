# SPDX-License-Identifier: Apache-2.0
"""Sockets without TLS as the HTTP server uses them: a transport for a `BufferedProtocol`, and who accepts them.

Data in: bytes of connections. Data out: calls of the protocol, as asyncio's own transport makes them (asyncio.Transport and
asyncio.BufferedProtocol say which and when). What all connections share (one buffer, one limit of what may wait to be sent) is not kept by
each, and a short request costs two calls here instead of six. They are watched together (`readiness`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from plait.http.readiness import READ, WRITE, Readiness

log = logging.getLogger("plait.http")
_MUCH, _LITTLE = 64 * 1024, 16 * 1024
"""Bytes that wait to be sent: above the first the protocol is told to pause, from the second on to go on."""
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REST_S = 1.0
"""For which nothing is accepted once the system has run out of something."""
_NOTHING = bytearray()
"""Stays empty."""
_NOBODY = asyncio.BufferedProtocol()
"""The protocol of a wire that is lost."""
_AT_ONCE = 128
"""Connections that are accepted in one round of the loop."""


class Wire(asyncio.Transport):
    """Of one connected socket, which it closes in the end. Reads into `buffer`, which the protocol has emptied when it returns."""

    __slots__ = (
        "_buffer",
        "_closing",
        "_ended",
        "_fd",
        "_lost",
        "_paused",
        "_protocol",
        "_readiness",
        "_reads",
        "_sock",
        "_told",
        "_unsent",
    )

    def __init__(self, readiness: Readiness, sock: socket.socket, protocol: asyncio.BufferedProtocol, buffer: memoryview) -> None:
        self._readiness, self._sock, self._protocol, self._buffer = readiness, sock, protocol, buffer
        self._fd = sock.fileno()
        self._unsent = _NOTHING
        self._closing = self._lost = self._ended = self._paused = self._told = self._reads = False
        protocol.connection_made(self)
        if not self._closing:
            self._read_on()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._sock
        try:
            return self._sock.getpeername() if name == "peername" else default
        except OSError:  # it is gone
            return default

    def is_closing(self) -> bool:
        return self._closing

    def ready(self, events: int) -> None:
        """See `readiness.Watched`."""
        if self._reads and events & ~WRITE:
            self._readable()
        if self._unsent and events & ~READ:
            self._writable()

    def _watch(self) -> None:
        self._readiness.watch(self._fd, self._reads * READ | bool(self._unsent) * WRITE, self)

    # --- reading

    def pause_reading(self) -> None:
        self._paused = True
        self._read_no_more()

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            self._read_on()

    def _read_on(self) -> None:
        self._reads = True
        self._watch()

    def _read_no_more(self) -> None:
        if self._reads:
            self._reads = False
            self._watch()

    def _readable(self) -> None:
        try:
            count = self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._break(error)
            return
        try:
            if count:
                self._protocol.buffer_updated(count)
            elif self._protocol.eof_received():
                self._read_no_more()
            else:
                self.close()
        except Exception as fault:  # of the protocol's
            told = {"message": "in the protocol of a connection", "exception": fault, "transport": self}
            asyncio.get_running_loop().call_exception_handler(told)
            self._break(fault)

    # --- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._ended:
            return
        if not self._unsent:
            try:
                count = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError as error:
                self._break(error)
                return
            if count == len(data):
                return
            self._unsent = bytearray(data[count:])
            self._watch()
        else:
            self._unsent += data
        if len(self._unsent) > _MUCH and not self._told:
            self._told = True
            self._protocol.pause_writing()

    def _writable(self) -> None:
        try:
            count = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._break(error)
            return
        del self._unsent[:count]
        if not self._unsent:
            self._unsent = _NOTHING
            self._watch()
            if self._closing:
                self._lose(None)
                return
            if self._ended:
                self._shut()
        if self._told and len(self._unsent) <= _LITTLE:
            self._told = False
            self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self._closing or self._ended):
            self._ended = True
            if not self._unsent:
                self._shut()

    def _shut(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break(error)

    # --- ending

    def close(self) -> None:
        """What waits is sent first."""
        if not self._closing:
            self._closing = True
            self._read_no_more()
            if not self._unsent:
                asyncio.get_running_loop().call_soon(self._lose, None)

    def abort(self) -> None:
        self._break(None)

    def _break(self, error: Exception | None) -> None:
        self._read_no_more()
        if self._unsent:
            self._unsent = _NOTHING
            self._watch()
        elif self._closing:
            return  # that it is lost is on its way
        self._closing = True
        asyncio.get_running_loop().call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            protocol, self._protocol = self._protocol, _NOBODY  # who knows this wire, which else knew it for ever
            try:
                protocol.connection_lost(error)
            finally:
                self._sock.close()


class Door:
    """Accepts connections on a listening socket, which is its own from then on. `greet` makes the protocol of each."""

    def __init__(
        self, readiness: Readiness, sock: socket.socket, greet: Callable[[], asyncio.BufferedProtocol], buffer: memoryview
    ) -> None:
        self._readiness, self._sock, self._greet, self._buffer = readiness, sock, greet, buffer
        self._rest: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._open()

    def _open(self) -> None:
        self._rest = None
        self._readiness.watch(self._sock.fileno(), READ, self)

    def ready(self, events: int) -> None:
        """See `readiness.Watched`."""
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                log.warning("http_accept_failed", extra={"error": str(error)})
                self._readiness.watch(self._sock.fileno(), 0, self)
                self._rest = asyncio.get_running_loop().call_later(_REST_S, self._open)
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Wire(self._readiness, sock, self._greet(), self._buffer)

    def close(self) -> None:
        """Accept no more. Idempotent."""
        if self._rest is not None:
            self._rest.cancel()
        if self._sock.fileno() >= 0:
            self._readiness.watch(self._sock.fileno(), 0, self)
            self._sock.close()
