# SPDX-License-Identifier: Apache-2.0
"""Round trips to other nodes: whom they are measured to, and when the store hears of them."""

from __future__ import annotations

from ipaddress import IPv4Address

from plait.agent.echo import SHORTEST, TIMEOUT_S, Echoed
from plait.agent.roundtrips import FIRST, PUBLISH_EVERY_S, RoundTrips
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

    async def ask(self, address: IPv4Address, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
        self.asked.append(next(name for name, place in PEERS.items() if place == address))
        return Echoed(self.ways[address])

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
