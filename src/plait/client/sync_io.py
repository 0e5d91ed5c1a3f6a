# SPDX-License-Identifier: Apache-2.0
"""Performs effects with threads and sockets: keep-alive connections, time limits, and a way to stop from another thread.

Data in: Steps. Data out: their results. Any number of threads may use one Transport.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ECONNRESET
from typing import TypeVar

from plait.client.errors import Closed, Unreachable
from plait.client.settings import Settings
from plait.client.steps import Answer, Request, Sleep, Steps
from plait.client.wire import Reader, WireError, failure, request_bytes

T = TypeVar("T")
IDLE_MAX = 8
"""Connections kept for later."""
_PIECE = 64 * 1024


class Stop:
    """Ends what one thread is doing: a sleep at once, a request by shutting its connection down. Cannot be undone."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def stopped(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            if self._socket is not None:
                _shutdown(self._socket)

    def sleep(self, seconds: float) -> None:
        if self._event.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise Closed("stopped")

    @contextmanager
    def using(self, line: socket.socket) -> Iterator[None]:
        """Closed if it was stopped before; from here on `set` shuts `line` down."""
        with self._lock:
            if self._event.is_set():
                raise Closed("stopped")
            self._socket = line
        try:
            yield
        finally:
            with self._lock:
                self._socket = None


class Transport:
    """Connections to one agent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tls = settings.tls_context()
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._closed = False

    def send(self, request: Request, stop: Stop) -> Answer:
        """The answer; Unreachable if there is none, Closed if stopped. A read is repeated once if a kept connection had died unseen."""
        deadline = time.monotonic() + request.limit(self.settings.timeout_s)
        line = self._kept(request)
        if line is not None:
            try:
                return self._exchange(line, request, deadline, stop)
            except Unreachable:
                if not request.again or time.monotonic() >= deadline:
                    raise
        return self._exchange(self._connect(request, deadline), request, deadline, stop)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def _exchange(self, line: socket.socket, request: Request, deadline: float, stop: Stop) -> Answer:
        reader = Reader()
        sent = False
        try:
            with stop.using(line):
                line.settimeout(_left(deadline))
                sent = True
                line.sendall(request_bytes(request, self.settings))
                while reader.answer is None:
                    line.settimeout(_left(deadline))
                    reader.feed(line.recv(_PIECE))
        except (OSError, WireError) as error:
            line.close()
            if stop.stopped:
                raise Closed("stopped") from error
            raise failure(request, self.settings, error, sent) from error
        except BaseException:
            line.close()
            raise
        self._keep(line, reader.keep)
        return reader.answer

    def _connect(self, request: Request, deadline: float) -> socket.socket:
        settings = self.settings
        limit = min(_left(deadline), settings.timeout_s)
        try:
            if settings.unix:
                line = socket.socket(socket.AF_UNIX)
                line.settimeout(limit)
                try:
                    line.connect(settings.host)
                except BaseException:
                    line.close()
                    raise
                return line
            line = socket.create_connection((settings.host, settings.port), limit)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is None:
                return line
            try:
                return self._tls.wrap_socket(line, server_hostname=settings.server_name or settings.host)
            except BaseException:
                line.close()
                raise
        except (OSError, UnicodeError) as error:
            raise failure(request, settings, error, False) from error

    def _kept(self, request: Request) -> socket.socket | None:
        """A kept connection that the other side has not closed. Unreachable if all have been and that must not go unseen."""
        died = False
        while True:
            with self._lock:
                if self._closed:
                    raise Closed("the client was closed")
                line = self._idle.pop() if self._idle else None
            if line is None:
                if died and request.wait_s:
                    raise failure(request, self.settings, ConnectionResetError(ECONNRESET, ""), False)
                return None
            poll = select.poll()
            poll.register(line, select.POLLIN)
            if not poll.poll(0):
                return line
            died = True
            line.close()

    def _keep(self, line: socket.socket, usable: bool) -> None:
        with self._lock:
            if usable and not self._closed and len(self._idle) < IDLE_MAX:
                self._idle.append(line)
                return
        line.close()


def run(steps: Steps[T], transport: Transport, stop: Stop) -> T:
    """Perform an operation in this thread."""
    try:
        effect = next(steps)
        while True:
            if isinstance(effect, Request):
                try:
                    answer = transport.send(effect, stop)
                except Unreachable as error:
                    effect = steps.throw(error)
                    continue
                effect = steps.send(answer)
            elif isinstance(effect, Sleep):
                stop.sleep(effect.seconds)
                effect = steps.send(None)
            else:
                effect = steps.send(time.monotonic())
    except StopIteration as done:
        result: T = done.value
        return result


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _shutdown(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed meanwhile
