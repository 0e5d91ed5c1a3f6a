# SPDX-License-Identifier: Apache-2.0
"""UDP side of the DNS child: datagrams in, up to 64 a system call -> responses out, as many a system call.

recvmmsg(2) and sendmmsg(2) are reached by ctypes; with the packet cache this is what makes pure Python keep up with servers
written in C. A socket is bound to one address, so every response comes from the address that was asked.
"""

from __future__ import annotations

import ctypes
import functools
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

from plait.dns.answer import Pending
from plait.serve.dns_core import Core
from plait.serve.dns_link import Address
from plait.serve.dns_reactor import READ

SLOTS = 64
"""Datagrams per system call."""
ROUNDS = 8
"""Batches read from one socket before the others have their turn."""
QUERY_SIZE = 2048
"""Longest query read, bytes; a longer one gets FORMERR."""

_NAME_SIZE = 28  # sizeof(struct sockaddr_in6), the larger one
_INET = socket.AF_INET.to_bytes(2, sys.byteorder)
_SO_TIMESTAMPNS = 64  # asm-generic/socket.h, SO_TIMESTAMPNS_NEW: seconds and nanoseconds of 64 bits each
_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _BytesIovec(ctypes.Structure):
    """The same layout, but takes a bytes object as it is: assigning one stores its pointer, zero bytes inside do not matter."""

    _fields_ = (("base", ctypes.c_char_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint))


class _Control(ctypes.Structure):
    """struct cmsghdr with what SO_TIMESTAMPNS_NEW adds; its size is CMSG_SPACE of that, so that the kernel leaves `controllen` as it is."""

    _fields_ = (
        ("len", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("type", ctypes.c_int),
        ("seconds", ctypes.c_int64),
        ("nanoseconds", ctypes.c_int64),
    )


_CONTROL_SIZE = ctypes.sizeof(_Control)


class Batch:
    """Buffers of one recvmmsg and one sendmmsg, shared by all sockets of one address family (so that the room for a client's
    address, which the kernel cuts down to what it wrote, always does for the next). Responses go out with the whole room as
    the length of the address: the kernel takes what it needs of it."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(SLOTS * QUERY_SIZE)
        self._names = ctypes.create_string_buffer(SLOTS * _NAME_SIZE)
        self._in_iovecs, self._out_iovecs = (_Iovec * SLOTS)(), (_BytesIovec * SLOTS)()
        self._received, self._to_send = (_Mmsghdr * SLOTS)(), (_Mmsghdr * SLOTS)()
        self._controls = (_Control * SLOTS)()
        self._places = [ctypes.addressof(self._names) + slot * _NAME_SIZE for slot in range(SLOTS)]
        for slot in range(SLOTS):
            self._in_iovecs[slot] = _Iovec(ctypes.addressof(self._buffer) + slot * QUERY_SIZE, QUERY_SIZE)
            for array, iovecs in ((self._received, self._in_iovecs), (self._to_send, self._out_iovecs)):
                array[slot].hdr = _Msghdr(self._places[slot], _NAME_SIZE, ctypes.addressof(iovecs[slot]), 1, None, 0, 0)
            self._received[slot].hdr.control, self._received[slot].hdr.controllen = ctypes.addressof(self._controls[slot]), _CONTROL_SIZE
        # Made once: indexing an array of structures makes a new object each time, and reading a member of one is slow too.
        self._lengths = memoryview(self._received).cast("B").cast("I")[_Mmsghdr.len.offset // 4 :: ctypes.sizeof(_Mmsghdr) // 4]
        stamps = memoryview(self._controls).cast("B").cast("q")
        self._seconds = stamps[_Control.seconds.offset // 8 :: _CONTROL_SIZE // 8]
        self._nanoseconds = stamps[_Control.nanoseconds.offset // 8 :: _CONTROL_SIZE // 8]
        self._out = [self._out_iovecs[slot] for slot in range(SLOTS)]
        self._slots = list(range(SLOTS))  # to whom each place of `_to_send` goes at present

    def receive(self, fd: int) -> int:
        """Fill the slots from `fd`; returns how many were filled, 0 if there was nothing or an error."""
        count: int = _libc.recvmmsg(fd, self._received, SLOTS, socket.MSG_DONTWAIT, None)
        return max(0, count)

    def queries(self, count: int) -> list[bytes]:
        """The datagrams in the first `count` slots. One that did not fit is cut off, and so no well-formed query."""
        buffer: Any = self._buffer  # a slice of it is bytes, which the type stubs do not know
        start, found = 0, []
        for length in self._lengths[:count].tolist():
            found.append(buffer[start : start + length])
            start += QUERY_SIZE
        return found

    def late(self, count: int, before: float) -> int:
        """How many of the first `count` datagrams, which are in order, came to this host before that time (time.time())."""
        slot = 0
        while slot < count and self._seconds[slot] + 1e-9 * self._nanoseconds[slot] < before:
            slot += 1
        return slot

    def client(self, slot: int) -> Address:
        """Who sent the datagram in `slot`."""
        host = self.source(slot)
        port: Any = self._names[slot * _NAME_SIZE + 2 : slot * _NAME_SIZE + 4]
        return socket.inet_ntop(socket.AF_INET if len(host) == 4 else socket.AF_INET6, host), int.from_bytes(port, "big")

    def source(self, slot: int) -> bytes:
        """Its address alone, packed."""
        start = slot * _NAME_SIZE
        names: Any = self._names
        found: bytes = names[start + 4 : start + 8] if names[start : start + 2] == _INET else names[start + 8 : start + 24]
        return found

    def send(self, fd: int, responses: list[tuple[int, bytes]]) -> int:
        """Send each (slot, response) to the client of that slot; returns how many could not be sent."""
        count = len(responses)
        slots = self._slots
        for place, (slot, response) in enumerate(responses):
            if slots[place] != slot:
                slots[place], self._to_send[place].hdr.name = slot, self._places[slot]
            iovec = self._out[place]
            iovec.base, iovec.len = response, len(response)
        done = failed = 0
        while done < count:
            rest = ctypes.byref(self._to_send, done * ctypes.sizeof(_Mmsghdr))
            sent = _libc.sendmmsg(fd, rest, count - done, socket.MSG_DONTWAIT)
            failed += sent <= 0  # the first of the rest cannot be sent: go on behind it
            done += max(1, sent)
        return failed


class UdpListener:
    """Answers on one bound socket. `batch` is shared with the other sockets of its family."""

    def __init__(self, sock: socket.socket, batch: Batch, core: Core) -> None:
        self._batch, self._core, self.sock = batch, core, sock
        self._pending, self._closing = 0, False
        self._behind, self._empty_at = False, time.monotonic()
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        core.reactor.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        """Answer what has arrived, then read no more; the socket stays until those have their answers who wait for somebody else's."""
        self._ready(READ)
        self._core.reactor.remove(self.sock.fileno())
        self._closing = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._closing and not self._pending:
            self.sock.close()

    def _ready(self, _events: int) -> None:
        if not self._behind:
            self._empty_at = self._core.reactor.before
        self._behind = False
        for _ in range(ROUNDS):
            count = self._batch.receive(self.sock.fileno())
            if count:
                self._answer(count)
            if count < 2:  # where two came at once a third is often there by now
                return
        self._behind = True

    def _answer(self, count: int) -> None:
        """Answer the first `count` slots: at once, or once an upstream has."""
        batch, responses = self._batch, []
        reply, source = self._core.responder.reply, batch.source
        queries: Iterable[tuple[int, bytes]] = enumerate(batch.queries(count))
        limits = self._core.limiter.limits
        late = self._late(count, limits.client_timeout)
        if late or limits.client_rate:
            queries = self._admitted(queries, late)
        for slot, data in queries:
            response = reply(data, source, slot)
            if type(response) is bytes:
                responses.append((slot, response))
            elif isinstance(response, Pending):
                self._pending += 1
                self._core.later.resolve(response, data, functools.partial(self._send_later, batch.client(slot)))
            else:
                self._core.counters.dropped += 1
        self._core.counters.udp_queries += count
        self._core.counters.send_failures += batch.send(self.sock.fileno(), responses)

    def _late(self, count: int, client_timeout: float) -> int:
        """How many of the first `count` queries waited for longer. The kernel tells by the host's clock when they came, which may have been
        set since; so it is asked only if they can have waited that long by the clock that runs evenly."""
        if time.monotonic() - self._empty_at <= client_timeout:
            return 0
        return self._batch.late(count, time.time() - client_timeout)

    def _admitted(self, queries: Iterable[tuple[int, bytes]], late: int) -> list[tuple[int, bytes]]:
        """Without the first `late` ones, and without those of clients that ask too often."""
        limiter = self._core.limiter
        self._core.counters.expired += late
        limited = limiter.limits.client_rate
        return [(slot, data) for slot, data in queries if slot >= late and (not limited or limiter.admits(self._batch.source(slot)))]

    def _send_later(self, client: Address, response: bytes) -> None:
        self._pending -= 1
        try:
            self.sock.sendto(response, client)
        except OSError:  # the client is gone, or the buffer full
            self._core.counters.send_failures += 1
        self._close_if_done()
