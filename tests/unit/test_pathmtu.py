# SPDX-License-Identifier: Apache-2.0
"""Path MTU discovery against paths made of numbers: routers that tell, black holes, losses, silence; then what is kept and told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.agent.echo import LOST, SHORTEST, TIMEOUT_S, Echoed
from plait.agent.pathmtu import FLOOR, TRIES, PathMtus, Way, probe_path, ways
from plait.model.cluster import Node, Snapshot

B = IPv4Address("192.0.2.2")
MTUS = {"A": 9000, "B": 1500, "C": 9000}
NODES = {name: Node(name, f"id-{name}", IPv4Address(f"192.0.2.{n}"), mtu) for n, (name, mtu) in enumerate(MTUS.items(), 1)}


@dataclass
class Road:
    """A path whose links carry `links` bytes each, in order; a router before a link that `tells` says so, another drops."""

    links: list[int]
    tells: bool = True
    silent: bool = False
    loss: float = 0.0
    random: Random = field(default_factory=lambda: Random(7))
    asked: list[int] = field(default_factory=list)

    async def ask(self, address: IPv4Address, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
        self.asked.append(size)
        if self.silent or self.random.random() < self.loss:
            return LOST
        for link in self.links:
            if size > link:
                return Echoed(None, link) if self.tells else LOST
        return Echoed(0.001)


sizes = st.integers(FLOOR, 9000)


@given(st.lists(sizes, min_size=1, max_size=4), st.booleans(), sizes, sizes)
def test_the_narrowest_link_is_found_exactly(links: list[int], tells: bool, ceiling: int, last: int) -> None:
    road = Road(links, tells)
    found = asyncio.run(probe_path(road, Way(B, ceiling), last))
    assert found == min(ceiling, *links)
    assert len(road.asked) <= 14 * TRIES + 8


async def test_a_free_way_costs_one_request_and_a_known_one_little() -> None:
    road = Road([9000])
    assert await probe_path(road, Way(B, 9000)) == 9000 and road.asked == [9000]
    road = Road([1400])
    assert await probe_path(road, Way(B, 1500)) == 1400 and road.asked == [1500, 1400]
    road = Road([1400], tells=False)
    assert await probe_path(road, Way(B, 1500), 1400) == 1400
    assert sorted(set(road.asked)) == [SHORTEST, 1400, 1401, 1500]


@pytest.mark.parametrize("ceiling", [1500, 9000])
async def test_some_loss_does_not_make_a_way_narrow(ceiling: int) -> None:
    road = Road([9000], loss=0.1)
    found = [await probe_path(road, Way(B, ceiling)) for _ in range(200)]
    assert found.count(ceiling) >= 195 and set(found) <= {ceiling, None} | set(range(ceiling - 64, ceiling))


async def test_who_answers_no_echo_is_not_measured() -> None:
    assert await probe_path(Road([1500], silent=True), Way(B, 1500)) is None
    assert await probe_path(Road([1500], silent=True), Way(B, 1500), 1400) is None


@pytest.mark.parametrize("told", [0, 1, SHORTEST, FLOOR - 1, 1500, 9000])
async def test_a_word_that_cannot_be_true_is_not_followed(told: int) -> None:
    class Liar(Road):
        async def ask(self, address: IPv4Address, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
            echoed = await super().ask(address, size, timeout_s)
            return Echoed(None, told) if size == 1500 else echoed

    assert await probe_path(Liar([1500], tells=False), Way(B, 1500)) == 1499


async def test_below_the_floor_there_is_no_way() -> None:
    assert await probe_path(Road([300], tells=False), Way(B, 1500)) == FLOOR
    assert await probe_path(Road([300], tells=True), Way(B, 1500)) == FLOOR
    assert await probe_path(Road([500]), Way(B, 500)) == 500, "unless the own link is that narrow"


def test_ways_lead_to_the_living_others_and_are_as_wide_as_both_ends() -> None:
    snapshot = Snapshot("A", 1, NODES, frozenset("AB"))
    assert ways(snapshot) == {"B": Way(B, 1500)}
    assert ways(replace(snapshot, me="new")) == {}


class Keeper:
    """A node's path MTUs, with what was kept and told."""

    def __init__(self, known: dict[str, int]) -> None:
        self.kept = dict(known)
        self.told: list[bool] = []
        self.paths = PathMtus(lambda: Snapshot("A", 1, NODES, frozenset("ABC")), self.keep, self.hear, known)

    async def keep(self, node: str, mtu: int | None) -> None:
        self.kept.pop(node, None)
        if mtu is not None:
            self.kept[node] = mtu

    def hear(self, wider: bool) -> None:
        assert self.paths.known == self.kept, "kept before anybody hears of it"
        self.told.append(wider)

    async def measure(self, road: Road, ceiling: int = 1500) -> list[bool]:
        self.told.clear()
        await self.paths.measure(road, "B", Way(B, ceiling))
        return self.told


async def test_what_changed_is_kept_and_told_once() -> None:
    keeper = Keeper({"C": 1280})
    assert await keeper.measure(Road([1500])) == [] and keeper.kept == {"C": 1280}
    assert await keeper.measure(Road([1300])) == [False] and keeper.kept == {"B": 1300, "C": 1280}
    assert await keeper.measure(Road([1300])) == []
    assert await keeper.measure(Road([1400])) == [True] and keeper.kept["B"] == 1400
    assert await keeper.measure(Road([1400], silent=True)) == [], "what is known holds while nobody answers"
    assert keeper.paths.answered == set()
    assert await keeper.measure(Road([1500])) == [True] and keeper.kept == {"C": 1280}
    assert keeper.paths.answered == {"B"}


async def test_a_link_of_one_end_that_narrows_takes_the_place_of_what_was_probed() -> None:
    keeper = Keeper({"B": 1400})
    assert await keeper.measure(Road([1400]), ceiling=1300) == [False] and keeper.kept == {}


async def test_every_living_node_is_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.agent.pathmtu.EVERY_S", 0.02)
    monkeypatch.setattr("plait.agent.pathmtu.APART_S", 0.001)
    enough = asyncio.Event()

    class Counted(Road):
        async def ask(self, address: IPv4Address, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
            if len(self.asked) == 12:
                enough.set()
            return await super().ask(address, size, timeout_s)

    keeper, road = Keeper({}), Counted([1300])
    running = asyncio.create_task(keeper.paths.run(road))
    try:
        async with asyncio.timeout(5):
            await enough.wait()
    finally:
        running.cancel()
    assert keeper.paths.known == {"B": 1300, "C": 1300} and set(road.asked) == {1500, 9000, 1300}
