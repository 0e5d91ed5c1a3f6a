# SPDX-License-Identifier: Apache-2.0
"""Hosts of lost nodes that do not answer: who is asked, and when one is silent."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from tests.support.policies import NETWORKS, NODES

from plait.agent.echo import SHORTEST, TIMEOUT_S, Echoed
from plait.agent.silence import NEW, TRIES, Silence
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.service import Service, ServicePort

SHOP = Service("shop", "default", IPv4Address("10.27.0.9"), (ServicePort("tcp", 80, 8080),), {"app": "shop"})


class World:
    """Host A, and what it hears of the others."""

    def __init__(self) -> None:
        self.snapshot = Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS, services={SHOP.ident: SHOP})
        self.deaf: set[IPAddress] = set()
        self.asked: list[IPAddress] = []
        self.changes = 0
        self.silence = Silence(lambda: self.snapshot, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def ask(self, address: IPAddress, size: int = SHORTEST, timeout_s: float = TIMEOUT_S) -> Echoed:
        self.asked.append(address)
        return Echoed(None if address in self.deaf else 0.001)

    async def look(self, times: int = 1) -> frozenset[str]:
        for _ in range(times):
            await self.silence.look(self)
        return self.silence.silent

    def lose(self, name: str, *, deaf: bool) -> None:
        self.snapshot = replace(self.snapshot, alive=self.snapshot.alive - {name})
        if deaf:
            self.deaf.add(self.snapshot.nodes[name].address)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_lost_node_whose_host_does_not_answer_any_more_is_silent_until_it_does(world: World) -> None:
    await world.look()
    world.lose("B", deaf=True)
    assert await world.look(TRIES - 1) == frozenset()
    assert await world.look() == {"B"}
    assert await world.look(5) == {"B"} and world.changes == 1
    world.deaf.clear()
    assert await world.look() == frozenset() and world.changes == 2


async def test_an_answer_begins_the_count_anew(world: World) -> None:
    await world.look()
    world.lose("B", deaf=True)
    await world.look(TRIES - 1)
    world.deaf.clear()
    await world.look()
    world.lose("B", deaf=True)
    assert await world.look(TRIES - 1) == frozenset()


async def test_a_node_that_lives_or_lost_its_agent_alone_is_not(world: World) -> None:
    await world.look()
    world.deaf.add(NODES["B"].address)
    assert await world.look(5) == frozenset(), "it gives signs of life"
    world.deaf.clear()
    world.lose("B", deaf=False)
    assert await world.look(5) == frozenset(), "its host answers"


async def test_one_that_comes_back_is_no_longer_silent(world: World) -> None:
    await world.look()
    world.lose("B", deaf=True)
    await world.look(TRIES)
    world.snapshot = replace(world.snapshot, alive=frozenset("AB"))
    assert await world.look() == frozenset()


@pytest.mark.parametrize("moved", [False, True], ids=["never answered", "answered at another address"])
async def test_who_never_answered_says_nothing_by_silence(world: World, moved: bool) -> None:
    if moved:
        await world.look()
        there = replace(NODES["B"], address=IPv4Address("198.51.100.77"))
        world.snapshot = replace(world.snapshot, nodes={**world.snapshot.nodes, "B": there})
    else:
        world.deaf.add(NODES["B"].address)
        await world.look(5)
    world.lose("B", deaf=True)
    assert await world.look(2 * TRIES) == frozenset()


async def test_who_answered_is_not_asked_again_unless_it_is_lost_and_there_are_services(world: World) -> None:
    services, world.snapshot = world.snapshot.services, replace(world.snapshot, services={})
    await world.look(3)
    assert world.asked == [NODES["B"].address]
    world.lose("B", deaf=True)
    assert await world.look(2 * TRIES) == frozenset() and len(world.asked) == 1
    world.snapshot = replace(world.snapshot, services=services)
    assert await world.look(TRIES) == {"B"}, "it had answered before there were any"


async def test_many_are_asked_a_few_at_a_time(world: World) -> None:
    nodes = {f"n{i}": replace(NODES["B"], name=f"n{i}", address=IPv4Address(f"198.51.100.{100 + i}")) for i in range(2 * NEW + 1)}
    world.snapshot = replace(world.snapshot, nodes={"A": NODES["A"], **nodes}, alive=frozenset({"A", *nodes}))
    world.deaf = {node.address for node in nodes.values()}
    await world.look()
    assert len(world.asked) == NEW
    await world.look(2)
    assert len(world.asked) == len(set(world.asked)) == 2 * NEW + 1
