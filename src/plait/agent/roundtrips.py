# SPDX-License-Identifier: Apache-2.0
"""How far the other nodes are: measured by ICMP echo between their underlay addresses, kept as this node's network coordinate.

Data in: the living nodes, the coordinates they published. Data out: round trips, and now and then a new coordinate of this node in the
store. The other end's kernel answers, so that a busy agent there is no distance. Whoever does not answer (a firewall) is not measured;
its coordinate stays what it was. Source: RFC 792 (echo), icmp(7), raw(7) (ICMP_FILTER).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address
from typing import Protocol

from plait.model.errors import PlaitError
from plait.model.kv import Coordinate
from plait.services.coordinates import Locator

log = logging.getLogger("plait.roundtrips")
EVERY_S, FIRST_EVERY_S, FIRST = 5.0, 0.5, 20
"""Between two measurements: at rest, and for the first ones after the start."""
TIMEOUT_S = 2.0
PUBLISH_EVERY_S = 15.0
"""Least time between two coordinates in the store."""
MOVED_S, MOVED_PART = 0.0005, 0.1
"""So far (in seconds, and as a part of its distance from the origin) the coordinate has to move before it is published again."""
_ECHO, _ECHO_REPLY = 8, 0
_SOL_RAW, _ICMP_FILTER = 255, 1
_HEAD = struct.Struct("!BBHHH")
_NONCE = 16


class Probe(Protocol):
    async def round_trip(self, address: IPv4Address) -> float | None:
        """Seconds, None without an answer in time."""
        ...


class Echo:
    """Sends echo requests, each from a raw socket of its own that sees echo replies of that address only: what else comes to the host (its
    owner pings too) is none of the agent's work. A reply counts if it repeats the nonce. OSError without the right to (CAP_NET_RAW)."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        _raw_socket().close()

    async def round_trip(self, address: IPv4Address) -> float | None:
        loop, nonce = asyncio.get_running_loop(), os.urandom(_NONCE)
        answered: asyncio.Future[float] = loop.create_future()
        try:
            with _raw_socket() as sock:
                sock.connect((str(address), 0))
                loop.add_reader(sock, _read, sock, nonce, answered)
                try:
                    sent = time.monotonic()
                    sock.send(_request(nonce))
                    async with asyncio.timeout(self._timeout_s):
                        return await answered - sent
                finally:
                    loop.remove_reader(sock)
        except (TimeoutError, OSError):
            return None


def _raw_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("I", ~(1 << _ECHO_REPLY) & 0xFFFFFFFF))
    return sock


def _read(sock: socket.socket, nonce: bytes, answered: asyncio.Future[float]) -> None:
    """What has come; the reply gives the time of its arrival."""
    with contextlib.suppress(OSError):
        packet, now = sock.recv(2048), time.monotonic()
        if _nonce_of(packet) == nonce and not answered.done():
            answered.set_result(now)


def _request(nonce: bytes) -> bytes:
    head = _HEAD.pack(_ECHO, 0, 0, 0, 0)
    return _HEAD.pack(_ECHO, 0, _checksum(head + nonce), 0, 0) + nonce


def _nonce_of(packet: bytes) -> bytes:
    """What follows the heads of IP (raw(7): it is there) and ICMP; empty if the packet is shorter."""
    start = (packet[0] & 15) * 4 if packet else 0
    return packet[start + _HEAD.size :]


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


class RoundTrips:
    """`peers` gives the living others by name; `known` what the store says of a node; `publish` makes one durable, StoreUnavailable if it
    cannot."""

    def __init__(
        self,
        node: str,
        peers: Callable[[], Mapping[str, IPv4Address]],
        known: Callable[[str], Coordinate],
        publish: Callable[[Coordinate], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._peers, self._known, self._publish, self._clock = node, peers, known, publish, clock
        self._locator: Locator | None = None
        self._round: list[str] = []
        self._published_at = -math.inf
        self.measured = 0

    async def run(self, probe: Probe) -> None:
        """Never returns."""
        while True:
            pause = FIRST_EVERY_S if self.measured < FIRST else EVERY_S
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            await self.measure(probe)

    async def measure(self, probe: Probe) -> None:
        """One peer after the other, each once in a round of random order; the store hears of it when that has moved this node."""
        peers = self._peers()
        self._round = [name for name in self._round if name in peers] or random.sample(sorted(peers), len(peers))
        if not self._round:
            return
        name = self._round.pop()
        rtt_s = await probe.round_trip(peers[name])
        if rtt_s is None:
            log.debug("round_trip_unanswered", extra={"node": name})
            return
        if self._locator is None:  # the store is known by now, so a restart goes on from where it was
            self._locator = Locator(self._known(self._node), lambda: random.uniform(-0.5, 0.5))
        if self._locator.observe(name, self._known(name), rtt_s):
            self.measured += 1
            await self._tell(self._locator.coordinate)

    async def _tell(self, coordinate: Coordinate) -> None:
        told, now = self._known(self._node), self._clock()
        moved = math.dist(told.vec, coordinate.vec) + abs(told.height - coordinate.height) + abs(told.adjustment - coordinate.adjustment)
        far = max(MOVED_S, MOVED_PART * (math.hypot(*told.vec) + told.height))
        fresh = told == Coordinate(self._node) and self.measured >= FIRST // 2
        if not (moved > far or fresh) or now - self._published_at < PUBLISH_EVERY_S:
            return
        self._published_at = now
        try:
            await self._publish(coordinate)
        except PlaitError as error:  # the next one that is far enough is told
            log.debug("coordinate_unpublished", extra={"error": str(error)})
