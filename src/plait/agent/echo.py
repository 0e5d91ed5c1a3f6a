# SPDX-License-Identifier: Apache-2.0
"""ICMP echo to another node: how long the way takes, how large a packet it lets through, whether a tunnel or a link leads there at all.

Data in: an address and the length of the request. Data out: the time until its reply, or what a router said of its length. The other
end's kernel answers, so that a busy agent there counts for nothing. Every request forbids fragments and goes out whole whatever the
kernel believes of the path. Source: RFC 792 and RFC 4443 (echo), RFC 1191 and RFC 8201 (path MTU), icmp(7), raw(7) (ICMP_FILTER), ip(7)
(IP_MTU_DISCOVER, IP_RECVERR), ipv6(7), RFC 3542 (ICMP6_FILTER), linux/in.h (IP_UNICAST_IF: the device to send by, not to receive from).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from plait.model.addr import IPAddress

TIMEOUT_S, VIA_TIMEOUT_S = 2.0, 0.5
_HEAD = struct.Struct("!BBHHH")
_NONCE = 16
SHORTEST = 20 + _HEAD.size + _NONCE
"""Bytes of the shortest request, IP head and all; over IPv6 it is 20 bytes longer all the same."""
_PMTUDISC_PROBE = 3
_IP_PKTINFO, _IP_UNICAST_IF = 8, 50
_ERROR = struct.Struct("=IBBBBI")
"""The head of struct sock_extended_err (linux/errqueue.h): errno, origin, type, code, padding, info."""


class _Icmp(NamedTuple):
    """One family: its sockets, the bytes of an IP head, what a raw socket puts before what it receives, the types of request and reply, the
    options (level, IP_MTU_DISCOVER, IP_RECVERR), the filter (level, option, all but replies) and the error (origin, type, code) that tells
    of a packet that is too long."""

    family: socket.AddressFamily
    protocol: int
    head: int
    seen_head: bool
    request: int
    options: tuple[int, int, int]
    filter: tuple[int, int, bytes]
    too_long: tuple[int, int, int]


_V4 = _Icmp(
    socket.AF_INET,
    socket.IPPROTO_ICMP,
    20,
    True,
    8,
    (socket.IPPROTO_IP, 10, 11),
    (255, 1, struct.pack("I", ~1 & 0xFFFFFFFF)),
    (2, 3, 4),
)
_V6 = _Icmp(
    socket.AF_INET6,
    socket.IPPROTO_ICMPV6,
    40,
    False,
    128,
    (socket.IPPROTO_IPV6, 23, 25),
    (socket.IPPROTO_ICMPV6, 1, struct.pack("8I", *(0xFFFFFFFF ^ (2 if word == 129 // 32 else 0) for word in range(8)))),
    (3, 2, 0),
)


@dataclass(frozen=True, slots=True)
class Echoed:
    """What came of one request: seconds until its reply (None: there was none in time), and what a router on the way said is the longest
    packet that it can pass on (0: nothing was said), bytes."""

    rtt_s: float | None
    told: int = 0


LOST = Echoed(None)


@dataclass(frozen=True, slots=True)
class Lane:
    """One way to send a request: from the address `source`, through the tunnel `device`, or without one ("") to what is on the own link. No
    router and no relay is asked (SO_DONTROUTE: what the routes say of a tunnel's far end is not looked at), none would pass it on (its TTL
    is 1). The answer may come in from anywhere: the far end sends it by the path that it has chosen. One of IPv6 goes by the routes, which
    lead to what it asks by one way alone, and has no device."""

    source: IPAddress
    device: str = ""


class Probe(Protocol):
    async def ask(self, address: IPAddress, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
        """Send one request of `size` bytes (IP head included, at least `SHORTEST`). Nothing is raised: what could not be sent is lost."""
        ...


class LaneProbe(Protocol):
    async def ask_by(self, lane: Lane, address: IPAddress, timeout_s: float = TIMEOUT_S) -> float | None:
        """Seconds until the reply to a short request that goes by `lane`, None after `timeout_s` if there was none; so long takes also what
        could not be sent, for a device that is down is being mended. Raises LaneAbsent."""
        ...


class LaneAbsent(Exception):
    """This host has not got the source address or the device of a lane (yet)."""


class Echo:
    """Sends echo requests, each from a raw socket of its own that sees echo replies of that address only: what else comes to the host (its
    owner pings too) is none of the agent's work. A reply counts if it repeats the nonce, a router's word if it quotes the nonce's first
    four bytes, which are the request's identifier and number. OSError without the right to (CAP_NET_RAW)."""

    def __init__(self) -> None:
        _raw_socket(_V4).close()

    async def ask(self, address: IPAddress, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
        icmp = _of(address)
        try:
            sock = _raw_socket(icmp)
        except OSError:
            return LOST
        with sock:
            return await _exchange(sock, icmp, address, size, timeout_s)

    async def ask_by(self, lane: Lane, address: IPAddress, timeout_s: float = TIMEOUT_S) -> float | None:
        loop = asyncio.get_running_loop()
        over = loop.time() + timeout_s
        icmp = _of(lane.source)
        try:
            sock = _raw_socket(icmp)
        except OSError as error:  # a kernel without IPv6
            raise LaneAbsent(f"{lane}: {error}") from error
        with sock:
            _keep_to(sock, lane)
            echoed = await _exchange(sock, icmp, address, SHORTEST, timeout_s)
        if echoed.rtt_s is None:
            await asyncio.sleep(over - loop.time())
        return echoed.rtt_s

    async def ask_via(self, address: IPv4Address, device: str, source: IPv4Address) -> Echoed:
        """One short request from `source` that leaves by `device` whatever the routes say (ip(7), IP_PKTINFO); the reply comes by any."""
        with _raw_socket(_V4) as sock:
            try:
                sock.bind((str(source), 0))
                index = socket.if_nametoindex(device)
            except OSError:
                return LOST
            return await _exchange(sock, _V4, address, SHORTEST, VIA_TIMEOUT_S, _leaving_by(index, source))


async def _exchange(
    sock: socket.socket,
    icmp: _Icmp,
    address: IPAddress,
    size: int,
    timeout_s: float,
    ancillary: Sequence[tuple[int, int, bytes]] = (),
) -> Echoed:
    """Send one request, with such ancillary data, and wait for what comes of it."""
    loop, nonce = asyncio.get_running_loop(), os.urandom(_NONCE)
    outcome: asyncio.Future[float | int] = loop.create_future()
    try:
        sock.connect((str(address), 0))
        loop.add_reader(sock, _read, sock, icmp, nonce, outcome)
        try:
            sent = time.monotonic()
            sock.sendmsg([_request(icmp, nonce, size)], ancillary)
            await asyncio.wait([outcome], timeout=timeout_s)
        finally:
            loop.remove_reader(sock)
    except OSError:
        return LOST
    if not outcome.done():
        return LOST
    came = outcome.result()
    return Echoed(None, came) if isinstance(came, int) else Echoed(came - sent)


def _of(address: IPAddress) -> _Icmp:
    return _V4 if address.version == 4 else _V6


def _keep_to(sock: socket.socket, lane: Lane) -> None:
    """Have what is sent go by the lane and no further. LaneAbsent."""
    try:
        sock.bind((str(lane.source), 0))
        index = socket.if_nametoindex(lane.device) if lane.device else 0
    except OSError as error:
        raise LaneAbsent(f"{lane}: {error}") from error
    if lane.source.version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
        return
    sock.setsockopt(socket.IPPROTO_IP, _IP_UNICAST_IF, struct.pack("!I", index))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)


def _leaving_by(index: int, source: IPv4Address) -> list[tuple[int, int, bytes]]:
    """Ancillary data: struct in_pktinfo."""
    return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i4s4x", index, source.packed))]


def _raw_socket(icmp: _Icmp) -> socket.socket:
    sock = socket.socket(icmp.family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, icmp.protocol)
    level, discover, errors = icmp.options
    sock.setsockopt(*icmp.filter)
    sock.setsockopt(level, discover, _PMTUDISC_PROBE)
    sock.setsockopt(level, errors, 1)
    return sock


def _read(sock: socket.socket, icmp: _Icmp, nonce: bytes, outcome: asyncio.Future[float | int]) -> None:
    """What has come: of a reply the time of its arrival (float), of a router's word the length (int)."""
    now = time.monotonic()
    with contextlib.suppress(OSError):
        quoted, ancillary, _, _ = sock.recvmsg(_HEAD.size, 256, socket.MSG_ERRQUEUE)
        told = _told(icmp, ancillary)
        if told and quoted[4 : _HEAD.size] == nonce[:4] and not outcome.done():
            outcome.set_result(told)
    with contextlib.suppress(OSError):  # the error that has just been read is reported here once more
        if _nonce_of(icmp, sock.recv(2048)) == nonce and not outcome.done():
            outcome.set_result(now)


def _told(icmp: _Icmp, ancillary: list[tuple[int, int, bytes]]) -> int:
    """The MTU in an error "fragmentation needed" (RFC 1191, section 4) or "packet too big" (RFC 4443, section 3.2), 0 if this is another or
    gives none."""
    for level, kind, data in ancillary:
        if (level, kind) == (icmp.options[0], icmp.options[2]) and len(data) >= _ERROR.size:
            _, origin, icmp_type, code, _, info = _ERROR.unpack_from(data)
            if (origin, icmp_type, code) == icmp.too_long:
                return int(info)
    return 0


def _request(icmp: _Icmp, nonce: bytes, size: int) -> bytes:
    """Identifier and number are the nonce's first bytes; what follows the nonce is zero and adds nothing to the checksum, which over IPv6
    the kernel sets (RFC 3542, section 3.1)."""
    ident = int.from_bytes(nonce[:2]), int.from_bytes(nonce[2:4])
    checksum = _checksum(_HEAD.pack(icmp.request, 0, 0, *ident) + nonce)
    head = _HEAD.pack(icmp.request, 0, checksum, *ident) + nonce
    return head + bytes(max(0, size - icmp.head - len(head)))


def _nonce_of(icmp: _Icmp, packet: bytes) -> bytes:
    """What stands after the heads of IP (raw(7): of IPv4 it is there) and ICMP; shorter than a nonce if the packet is."""
    before = (packet[0] & 15) * 4 if packet and icmp.seen_head else 0
    return packet[before + _HEAD.size : before + _HEAD.size + _NONCE]


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
