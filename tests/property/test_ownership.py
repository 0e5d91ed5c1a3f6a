# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to nodes, networks and the way to the store: a block is handed out from by the node that holds it and by no other, and
once all is well again journals and store say the same.

What nobody can prevent is left out by name: of a node that was removed while its containers ran on, and of a network that was removed
while a node could not hear of it, an address may be given a second time until that node is heard of again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cluster import DEFAULT, FakeNode

import plait.store.replica
from plait.agent.admin import AgentAdmin
from plait.agent.keys import block_key
from plait.ipam import is_block_of
from plait.model.cluster import Block, Network
from plait.model.errors import Conflict, NotFound, PlaitError, StoreUnavailable
from plait.runtimes.api import NetworkRequest
from plait.store.api import Change, Compare, Delete, Item, Listing, Put, Store, TxnResult
from plait.store.codec import decode
from plait.store.memory import MemoryStore

TINY = "tiny"
SUBNETS = (IPv4Network("10.40.0.0/28"), IPv4Network("10.40.0.0/27"))
NODES = 3


class Wire(Store):
    """One node's way to the store: it may be cut, and an answer may be lost after the store has done what was asked."""

    def __init__(self, store: MemoryStore) -> None:
        self._at, self._cut, self.lose_answer = store, asyncio.Event(), False

    @property
    def cut(self) -> bool:
        return self._cut.is_set()

    def set_cut(self, cut: bool) -> None:
        self._cut.set() if cut else self._cut.clear()

    def _check(self) -> None:
        if self.cut:
            raise StoreUnavailable("cut")

    async def get(self, key: str) -> Item | None:
        self._check()
        return await self._at.get(key)

    async def list(self, prefix: str) -> Listing:
        self._check()
        return await self._at.list(prefix)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check()
        result = await self._at.txn(compares, ops)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailable("the answer was lost")
        return result

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        batches, cut = aiter(self._at.watch(prefix, from_revision)), asyncio.ensure_future(self._cut.wait())
        more = asyncio.ensure_future(anext(batches))
        try:
            while True:
                await asyncio.wait((more, cut), return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    raise StoreUnavailable("cut")
                yield more.result()
                more = asyncio.ensure_future(anext(batches))
        finally:
            cut.cancel()
            more.cancel()


class Cluster:
    """Three nodes, and which address their live containers have."""

    def __init__(self, store: MemoryStore, folder: Path) -> None:
        self.store = store
        self.wires = [Wire(store) for _ in range(NODES)]
        self.nodes = [FakeNode(name, number, wire, folder) for number, (name, wire) in enumerate(zip("ABC", self.wires, strict=True), 1)]
        self.up: set[int] = set()
        self.given: dict[tuple[int, str], tuple[str, IPv4Address]] = {}
        self.doubtful: set[tuple[int, str]] = set()
        """Containers whose address may be another's as well: see the module's text."""
        self.deaf: set[int] = set()
        """Nodes that could not hear of a network's removal."""
        self._made = 0

    # --- what may happen

    async def start(self, at: int) -> None:
        if at not in self.up:
            self.wires[at].set_cut(False)
            await self.nodes[at].start()
            await self.nodes[at].addresses.maintain()
            self.up.add(at)

    async def kill(self, at: int) -> None:
        if at in self.up:
            self.up.discard(at)
            await self.nodes[at].stop()

    async def cut(self, at: int) -> None:
        self.wires[at].set_cut(at in self.up)

    async def heal(self, at: int) -> None:
        self.wires[at].set_cut(False)
        if at in self.up:
            await self._hears_all(at)

    async def lose(self, at: int) -> None:
        self.wires[at].lose_answer = True

    async def upkeep(self, at: int) -> None:
        if at in self.up:
            await self.nodes[at].addresses.maintain()
            await self.nodes[at].publisher.publish()

    async def attach(self, at: int) -> None:
        await self._attach(at, TINY)

    async def attach_large(self, at: int) -> None:
        await self._attach(at, DEFAULT)

    async def _attach(self, at: int, network: str) -> None:
        if at in self.up and network in self.nodes[at].view.snapshot.networks:
            self._made += 1
            name = f"c{self._made}"
            address = await self.nodes[at].attach(name, network)
            if network == TINY and at in self.deaf:
                self.doubtful.add((at, name))
            if (at, name) not in self.doubtful:
                sure = {given for who, given in self.given.items() if who not in self.doubtful}
                assert (network, address) not in sure
            self.given[at, name] = (network, address)

    async def detach(self, at: int) -> None:
        mine = [name for node, name in self.given if node == at]
        if at in self.up and mine:
            await self.nodes[at].detach(mine[0])
            del self.given[at, mine[0]]

    async def forget(self, at: int) -> None:
        """By another node that hears of everything."""
        others = [self.nodes[other] for other in self.up if not self.wires[other].cut]
        if at not in self.up and others:
            self.doubtful |= {who for who in self.given if who[0] == at}
            await admin(others[0]).forget_node(self.nodes[at].name)

    async def lost(self, at: int) -> None:
        await self.kill(at)
        await self.forget(at)

    async def make_network(self, at: int, subnet: IPv4Network = SUBNETS[0]) -> None:
        if at in self.up:
            await self.nodes[at].ops.ensure_network(NetworkRequest(TINY, subnet, block_prefix=30))

    async def make_larger_network(self, at: int) -> None:
        await self.make_network(at, SUBNETS[1])

    async def remove_network(self, at: int) -> None:
        if at in self.up:
            try:
                await self.nodes[at].ops.remove_network(TINY, force=True)
            finally:  # also if only the answer was lost
                self.doubtful |= {who for who, (network, _) in self.given.items() if network == TINY}
                self.deaf |= {node for node in self.up if self.wires[node].cut}

    # --- what must be true

    async def settle(self) -> None:
        """Whoever is not cut off has heard of everything."""
        for at in self.up:
            if not self.wires[at].cut:
                await self._hears_all(at)
                self.deaf.discard(at)

    async def _hears_all(self, at: int) -> None:
        revision = await self.revision()
        await self.nodes[at].until(lambda: self.nodes[at].view.revision == revision)

    async def revision(self) -> int:
        return (await self.store.list("")).revision

    async def rest(self) -> None:
        for at in range(NODES):
            self.wires[at].lose_answer = False
            await self.start(at)
            await self.heal(at)
        for _ in range(4):
            before = await self.revision()
            for at in range(NODES):
                await self.settle()
                await self.upkeep(at)
            await self.settle()
            if await self.revision() == before:
                return
        raise AssertionError("the nodes do not come to rest")

    async def check(self) -> None:
        networks = {n.name: n for n in [decode(Network, i.value, i.key) for i in (await self.store.list("networks/")).items]}
        stored = [decode(Block, item.value, item.key) for item in (await self.store.list("blocks/")).items]
        assert all(block.network in networks and is_block_of(networks[block.network], block.cidr) for block in stored)
        for at, node in enumerate(self.nodes):
            mine = {(block.network, block.cidr) for block in stored if block.node == node.name}
            assert {(b.network, b.cidr) for name in networks for b in node.addresses._own.of(name)} == mine
            assert set(node.journal.load("block")) == {block_key(*block) for block in mine}
            for name, (network, address) in [(who[1], what) for who, what in self.given.items() if who[0] == at]:
                assert (at, name) in self.doubtful or any(network == of and address in cidr for of, cidr in mine), name
        used = set(self.given.values())
        for at, node in enumerate(self.nodes):
            for network in networks:
                try:
                    fresh = network, await node.attach(f"{network}-{at}", network)
                except PlaitError as error:
                    assert "exhausted" in str(error)
                else:
                    assert fresh not in used
                    used.add(fresh)
                    await self.settle()


def admin(node: FakeNode) -> AgentAdmin:
    return AgentAdmin(cast(Any, SimpleNamespace(view=node.view, store=node.store, caught_up=node.view.caught_up)))


WHAT = (
    ("attach",) * 4 + ("attach_large", "detach", "detach", "start", "start", "kill", "cut", "heal", "lose", "upkeep", "upkeep", "forget")
    + ("lost", "lost", "make_network", "make_network", "make_larger_network", "remove_network")
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, NODES - 1)), min_size=6, max_size=40))
def test_every_block_has_one_holder(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_run(steps))


async def _run(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.store.replica, "RETRY", (0.001, 0.002))
        store = MemoryStore()
        cluster = Cluster(store, Path(folder))
        try:
            for at in range(NODES):
                await cluster.start(at)
            for what, at in steps:
                try:
                    await getattr(cluster, what)(at)
                except (StoreUnavailable, Conflict, NotFound):
                    pass
                except PlaitError as error:
                    assert "exhausted" in str(error)
                await cluster.settle()
            await cluster.rest()
            await cluster.check()
        finally:
            for at in range(NODES):
                await cluster.kill(at)
            await store.close()
