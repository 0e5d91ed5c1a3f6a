# SPDX-License-Identifier: Apache-2.0
"""Round trips to other nodes: whom they are measured to, when the store hears of them, and the echo itself on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from ipaddress import IPv4Address

import pytest

from plait.agent.roundtrips import FIRST, PUBLISH_EVERY_S, Echo, RoundTrips, _nonce_of, _read, _request
from plait.model.errors import StoreUnavailable
from plait.model.kv import Coordinate

PEERS = {"B": IPv4Address("192.0.2.2"), "C": IPv4Address("192.0.2.3")}


class World:
    """What a node sees of the others; `ways` are the round trips in seconds, None = no answer."""

    def __init__(self) -> None:
        self.peers = dict(PEERS)
        self.ways: dict[IPv4Address, float | None] = {PEERS["B"]: 0.001, PEERS["C"]: 0.020}
        self.asked: list[str] = []
        self.published: list[Coordinate] = []
        self.stored = {"B": Coordinate("B", error=0.2), "C": Coordinate("C", vec=(0.02, *[0.0] * 7), error=0.2)}
        self.away, self.now = False, 100.0
        self.trips = self.restarted()

    def restarted(self) -> RoundTrips:
        return RoundTrips("A", lambda: self.peers, lambda node: self.stored.get(node, Coordinate(node)), self.publish, lambda: self.now)

    async def round_trip(self, address: IPv4Address) -> float | None:
        self.asked.append(next(name for name, place in PEERS.items() if place == address))
        return self.ways[address]

    async def publish(self, coordinate: Coordinate) -> None:
        if self.away:
            raise StoreUnavailable("it is away")
        self.published.append(coordinate)
        self.stored["A"] = coordinate

    async def measure(self, times: int, apart_s: float = 5.0) -> None:
        for _ in range(times):
            self.now += apart_s
            await self.trips.measure(self)


async def test_everybody_is_measured_once_a_round_and_who_is_gone_is_not() -> None:
    world = World()
    await world.measure(10)
    assert world.asked.count("B") == world.asked.count("C") == 5
    world.asked.clear()
    del world.peers["B"]
    await world.measure(4)
    assert world.asked == ["C"] * 4
    world.peers.clear()
    await world.measure(4)
    assert len(world.asked) == 4


async def test_the_store_hears_of_it_seldom_and_at_rest_never() -> None:
    world = World()
    await world.measure(200, apart_s=PUBLISH_EVERY_S / 3)
    assert 0 < len(world.published) <= 200 / 3 + 1
    before = len(world.published)
    await world.measure(300)
    assert len(world.published) - before <= 3
    assert world.stored["A"].error < 0.5


async def test_what_could_not_be_published_is_told_later() -> None:
    world = World()
    world.away = True
    await world.measure(FIRST)
    assert world.published == []
    world.away = False
    await world.measure(6)
    assert world.published


async def test_a_restart_goes_on_from_where_it_was() -> None:
    world = World()
    await world.measure(100)
    known = world.stored["A"]
    world.trips = world.restarted()
    await world.measure(FIRST)
    assert world.stored["A"].error <= 2 * known.error, "it did not begin at the origin again"


async def test_no_answer_is_no_distance() -> None:
    world = World()
    world.ways = dict.fromkeys(world.ways)
    await world.measure(20)
    assert (world.trips.measured, world.published) == (0, [])


# --- the echo


@pytest.fixture
async def echo() -> Echo:
    if os.geteuid() != 0:
        pytest.skip("raw sockets need root")
    return Echo(timeout_s=2.0)


async def test_the_kernel_answers(echo: Echo) -> None:
    for _ in range(3):
        assert 0 < (await echo.round_trip(IPv4Address("127.0.0.1")) or 0) < 1


async def test_what_cannot_be_sent_is_no_answer(echo: Echo) -> None:
    assert await echo.round_trip(IPv4Address("255.255.255.255")) is None


def test_a_reply_is_told_by_its_nonce_whatever_its_head() -> None:
    nonce = bytes(range(16))
    request = _request(nonce)
    assert sum(struct.unpack(f"!{len(request) // 2}H", request)) % 0xFFFF == 0, "RFC 1071: it sums up to all ones"
    for options in (0, 4, 40):
        head = bytes([0x40 | (5 + options // 4)]) + bytes(19 + options)
        assert _nonce_of(head + request) == nonce
    for cut in (b"", b"\x45", bytes(27)):
        assert _nonce_of(cut) == b"" or _nonce_of(cut) != nonce


async def test_a_reply_with_another_nonce_is_not_the_one_that_is_waited_for() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    head, nonce = b"\x45" + bytes(19), bytes(16)
    with ours, theirs:
        for other in (b"\1" * 16, nonce[:-1], nonce + b"x", b""):
            theirs.send(head + _request(nonce)[:8] + other)
            _read(ours, nonce, answered)
            assert not answered.done()
        _read(ours, nonce, answered)  # nothing has come
        theirs.send(head + _request(nonce))
        _read(ours, nonce, answered)
        assert answered.done()
