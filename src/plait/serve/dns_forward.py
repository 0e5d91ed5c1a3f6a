# SPDX-License-Identifier: Apache-2.0
"""Upstream side of the DNS child: queries for names that are not ours -> responses of an upstream resolver, or SERVFAIL.

Each attempt has a socket of its own (a random source port) and a random id, against forged responses. Upstreams are tried
in turn, beginning with the last one that answered, or one drawn for each query; the next one's turn comes on an error, on a
response code other than NOERROR and NXDOMAIN, or after the timeout. Nothing here blocks.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Sequence

from plait.dns import message as m
from plait.dns.answer import failure
from plait.serve.dns_heed import Heeding
from plait.serve.dns_link import Address, Upstreams
from plait.serve.dns_reactor import READ, WRITE, Reactor
from plait.serve.dns_responder import UDP_SIZE, Counters, choose

Done = Callable[[bytes], None]


class _Task:
    """A query on its way: which upstreams are left, and the socket, id and deadline of the present attempt."""

    def __init__(self, query: m.Query, data: bytes, done: Done, stream: bool, upstreams: Sequence[Address]) -> None:
        self.query, self.data, self.done, self.stream = query, data, done, stream
        self.left = list(upstreams)
        self.upstream: Address = ("", 0)
        self.sock: socket.socket | None = None
        self.ident = b""
        self.deadline = 0.0
        self.received = bytearray()


class Forwarder:
    """Asks upstreams. `submit` calls back exactly once for each query, unless `close` comes first. `heeding` passes responses on."""

    def __init__(self, reactor: Reactor, counters: Counters, heeding: Heeding) -> None:
        self._reactor, self._counters, self._heeding, self._settings = reactor, counters, heeding, Upstreams()
        self._order: list[Address] = []
        self._tasks: dict[int, _Task] = {}  # by descriptor; in the order of their deadlines, since all wait equally long

    def set_upstreams(self, upstreams: Upstreams) -> None:
        """Use `upstreams` for queries submitted from now on."""
        self._settings, self._order = upstreams, list(upstreams.places)

    def submit(self, query: m.Query, data: bytes, done: Done, *, stream: bool = False) -> None:
        """Have `data` answered and call `done` with the response. `stream`: over TCP, for a client that asked so. A query beyond those
        that may be on their way is answered SERVFAIL at once and counted."""
        if len(self._tasks) >= self._settings.outstanding:
            self._counters.forward_rejected += 1
            done(failure(query, UDP_SIZE))
            return
        self._counters.forwarded += 1
        self._try_next(_Task(query, data, done, stream, self._turns()))

    def next_deadline(self) -> float | None:
        """When `sweep` has something to do (time.monotonic), None while nothing is in flight."""
        return next((task.deadline for task in self._tasks.values()), None)

    def sweep(self, now: float) -> None:
        """Give the tasks whose deadline has passed to their next upstream."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            self._fail_over(next(iter(self._tasks.values())))

    def _try_next(self, task: _Task) -> None:
        """Start an attempt at the first upstream left that can be reached; answer SERVFAIL if none is."""
        while task.left:
            task.upstream = task.left.pop(0)
            try:
                self._start(task)
                return
            except OSError:
                self._drop_socket(task)
        self._counters.forward_failed += 1
        task.done(failure(task.query, UDP_SIZE))

    def _start(self, task: _Task) -> None:
        family = socket.AF_INET6 if ":" in task.upstream[0] else socket.AF_INET
        kind = socket.SOCK_STREAM if task.stream else socket.SOCK_DGRAM
        task.ident, task.deadline, task.received = os.urandom(2), time.monotonic() + self._settings.timeout, bytearray()
        task.sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            task.sock.connect(task.upstream)
        except BlockingIOError:  # TCP: writable once it is connected
            pass
        if not task.stream:
            task.sock.send(task.ident + task.data[2:])
        self._tasks[task.sock.fileno()] = task
        self._reactor.add(task.sock.fileno(), WRITE if task.stream else READ, lambda events: self._ready(task, events))

    def _drop_socket(self, task: _Task) -> None:
        if task.sock is not None:
            if self._tasks.pop(task.sock.fileno(), None) is not None:
                self._reactor.remove(task.sock.fileno())
            task.sock.close()
            task.sock = None

    def _ready(self, task: _Task, events: int) -> None:
        sock = task.sock
        assert sock is not None
        try:
            if task.stream and events & WRITE:
                # A query is far smaller than an empty socket's buffer: one send takes it whole.
                sock.send(len(task.data).to_bytes(2, "big") + task.ident + task.data[2:])
                self._reactor.change(sock.fileno(), READ)
                return
            response = self._read_stream(task, sock) if task.stream else sock.recv(m.STREAM_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._fail_over(task)
            return
        if response is not None and _belongs(response, task):
            self._finish(task, response)

    def _read_stream(self, task: _Task, sock: socket.socket) -> bytes | None:
        """The response once it is complete. Raises OSError if the upstream closes before."""
        chunk = sock.recv(m.STREAM_SIZE)
        if not chunk:
            raise ConnectionResetError
        task.received += chunk
        end = 2 + int.from_bytes(task.received[:2], "big")
        return bytes(task.received[2:end]) if len(task.received) >= end else None

    def _finish(self, task: _Task, response: bytes) -> None:
        if response[3] & 0xF not in (m.NOERROR, m.NXDOMAIN):
            self._fail_over(task)
            return
        self._drop_socket(task)
        self._prefer(task.upstream)
        self._heeding.pass_on(task.data, response, functools.partial(task.done, task.data[:2] + response[2:]))

    def _fail_over(self, task: _Task) -> None:
        self._drop_socket(task)
        self._try_next(task)

    def _prefer(self, upstream: Address) -> None:
        """Begin with `upstream` from now on, the others following in their order."""
        if upstream in self._order[1:]:
            at = self._order.index(upstream)
            self._order = self._order[at:] + self._order[:at]

    def _turns(self) -> list[Address]:
        """The upstreams in the order in which one query tries them."""
        if not self._settings.random:
            return self._order
        left, turns = list(self._settings.places), list[Address]()
        while left:
            turns.append(left.pop(choose(len(left))))
        return turns


def _belongs(response: bytes, task: _Task) -> bool:
    """Whether `response` answers the present attempt of `task`: id, and the question in any case."""
    if len(response) < m.HEADER or response[:2] != task.ident or not response[2] & 0x80:
        return False
    end = m.question_end(task.data)
    return response[m.HEADER : end].lower() == task.data[m.HEADER : end].lower()
