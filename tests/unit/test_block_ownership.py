# SPDX-License-Identifier: Apache-2.0
"""Who holds a block after nodes, networks and copies of the store went and came back: never two, and never nobody for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

import plait.agent.view
from plait.agent.admin import AgentAdmin
from plait.agent.files import Paths
from plait.agent.identity import Identity
from plait.agent.keys import alive_key, block_key, blocks_prefix, network_key, record_key
from plait.agent.reports import strays
from plait.agent.stores import leave
from plait.agent.view import View
from plait.ipam import stray_endpoints
from plait.model.cluster import Block
from plait.model.errors import Conflict, NotFound, StoreUnavailable
from plait.model.objects import NFT_FAST_FAMILY, NftSet, Route
from plait.plan import Local, plan_node
from plait.runtimes.api import NetworkRequest
from plait.store.api import Change, Compare, Delete, Item, Put, Store, TxnResult
from plait.store.codec import decode, encode
from plait.store.memory import MemoryStore
from plait.store.sqlite import SqliteStore

TINY = IPv4Network("10.40.0.0/28")


class Counting(MemoryStore):
    """`refused`: transactions whose comparisons did not hold."""

    refused = 0

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        result = await super().txn(compares, ops)
        self.refused += not result.ok
        return result


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plait.agent.view, "_CATCH_UP_S", 0.5)


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


async def _holders(store: Cuttable, network: str) -> dict[IPv4Network, str]:
    found = [decode(Block, item.value, item.key) for item in (await store.list(blocks_prefix(network))).items]
    return {block.cidr: block.node for block in found}


def _given(node: FakeNode, network: str) -> set[IPv4Network]:
    """The blocks that `node` hands out from."""
    return {block.cidr for block in node.addresses._own.of(network)}


async def _tiny(*made: FakeNode) -> None:
    await made[0].ops.ensure_network(NetworkRequest("tiny", TINY))
    for node in made:
        await node.until(lambda node=node: "tiny" in node.view.snapshot.networks)


async def _taken_over(store: Cuttable, a: FakeNode, b: FakeNode) -> IPv4Network:
    """A block of `a` that was given back by others, and leased by `b`, while `a` was not there."""
    await _tiny(a, b)
    await a.attach("web", "tiny")
    (cidr,) = _given(a, "tiny")
    await a.publisher.publish()
    await a.stop()
    await store.txn([], [Delete(block_key("tiny", cidr)), Delete("endpoints/A/", prefix=True)])
    await b.until(lambda: ("tiny", cidr) not in b.view.snapshot.blocks)
    await b.addresses.lease(b.view.snapshot.networks["tiny"], cidr[1])
    return cidr


async def test_a_node_that_was_taken_for_gone_does_not_get_its_block_back_from_its_journal(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        cidr = await _taken_over(store, a, b)
        await a.start()
        await a.publisher.publish()
        assert (await _holders(store, "tiny"))[cidr] == "B"
        assert a.view.snapshot.blocks["tiny", cidr].node == "B" and cidr not in _given(a, "tiny")
        assert await a.attach("more", "tiny") not in cidr
        assert [text.partition(":")[0] for text in strays(a.view.snapshot).values()] == ["web"]


def _next_hops(node: FakeNode) -> frozenset[str]:
    found = node.kernel.objects[NftSet("next", "", frozenset(), kind="map", family=NFT_FAST_FAMILY).key]
    assert isinstance(found, NftSet)
    return found.elements


async def test_the_fast_path_leads_to_no_block_of_which_a_container_lives_elsewhere(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        cidr = await _taken_over(store, a, b)
        for node in (a, c):
            node.fast_path = True
        await a.start()
        for node in (a, b, c):
            await node.publisher.publish()
        block = f"{cidr.network_address} : "
        for node in (a, c):
            await node.until(lambda node=node: bool(stray_endpoints(node.view.snapshot)) and "B" in node.view.snapshot.nodes)
            await node.converge()
            assert not [hop for hop in _next_hops(node) if hop.startswith(block)] and len(_next_hops(node)) > 1
        await a.detach("web")
        await a.publisher.publish()
        await c.until(lambda: not stray_endpoints(c.view.snapshot))
        await c.converge()
        assert [hop for hop in _next_hops(c) if hop.startswith(block)], "and it does again"


async def test_the_new_holder_gives_no_address_that_lives_on_with_the_old_one(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        cidr = await _taken_over(store, a, b)
        await a.start()
        await a.publisher.publish()
        (old,) = (e.address for e in a.ops.endpoints("sandbox").values())
        await b.until(lambda: any(e.address == old for e in b.view.snapshot.endpoints.values()))
        got = {await b.attach(f"c{n}", "tiny") for n in range(6)}
        assert old in cidr and old not in got
        with pytest.raises(Conflict, match="in use on another node"):
            await b.attach("asked", "tiny", str(old))


def _routes(node: FakeNode, address: IPv4Address) -> list[Route]:
    """What leads from `node` to `address` over the tunnel, the most specific first."""
    routes = [o for o in plan_node(node.view.snapshot, Local()).values() if isinstance(o, Route) and o.via is not None]
    return sorted((route for route in routes if address in route.dst), key=lambda route: -route.dst.prefixlen)


async def _sees(node: FakeNode, *endpoints: str) -> None:
    await node.until(lambda: set(endpoints) <= set(node.view.snapshot.endpoints))


async def test_containers_on_addresses_of_a_lost_block_are_reached_where_they_are(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        cidr = await _taken_over(store, a, b)
        (old,) = (e.address for e in a.ops.endpoints("sandbox").values())
        await a.start()
        await a.publisher.publish()
        for node in (b, c):
            await _sees(node, "A.web")
            assert _routes(node, old)[0].dst == IPv4Network(old) and _routes(node, old)[0].via == a.addresses.tunnel_address()
        others = [address for address in cidr if address != old]
        await b.publisher.publish()
        await c.until(lambda: c.view.snapshot.nodes["B"].tunnel is not None if "B" in c.view.snapshot.nodes else False)
        assert {route.via for address in others for route in _routes(c, address)} == {b.addresses.tunnel_address()}


async def test_of_two_with_one_address_the_holders_own_is_reached(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        await _taken_over(store, a, b)
        (old,) = (e.address for e in a.ops.endpoints("sandbox").values())
        assert await b.attach("its", "tiny", str(old)) == old, "nobody can tell B that A lives"
        await a.start()
        await a.publisher.publish()
        await b.publisher.publish()
        await _sees(c, "A.web", "B.its")
        assert [route.via for route in _routes(c, old)] == [b.addresses.tunnel_address()]


async def test_a_lost_block_that_falls_free_is_not_the_old_holders_again(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        cidr = await _taken_over(store, a, b)
        await a.start()
        await b.addresses.maintain()
        await a.until(lambda: ("tiny", cidr) not in a.view.snapshot.blocks)
        await a.publisher.publish()
        assert cidr not in await _holders(store, "tiny") and cidr not in _given(a, "tiny")


async def test_an_empty_block_is_given_back_only_by_who_holds_it(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _tiny(a, b)
        await a.attach("web", "tiny")
        (cidr,) = _given(a, "tiny")
        await a.until(lambda: a.view.item(block_key("tiny", cidr)) is not None)
        await a.detach("web")
        key, other = block_key("tiny", cidr), encode(Block("tiny", cidr, "B"))
        a._task.cancel()  # A hears no more of what others do
        await store.txn([], [Put(key, other)])
        await a.addresses.maintain()
        assert (await _holders(store, "tiny"))[cidr] == "B"


@pytest.mark.parametrize("done", [False, True])
async def test_killed_while_a_block_is_given_back(store: Cuttable, tmp_path: Path, done: bool) -> None:
    """`done`: whether the store had done it when the node was killed."""
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _tiny(a, b)
        await a.attach("web", "tiny")
        (cidr,) = _given(a, "tiny")
        await a.until(lambda: a.view.item(block_key("tiny", cidr)) is not None)
        await a.detach("web")
        store.away = True
        await a.addresses.maintain()
        assert not _given(a, "tiny"), "nothing is given from a block whose return is on its way"
        await a.stop()
        store.away = False
        if done:
            await store.txn([], [Delete(block_key("tiny", cidr))])
            await b.until(lambda: ("tiny", cidr) not in b.view.snapshot.blocks)
            await b.addresses.lease(b.view.snapshot.networks["tiny"], cidr[1])
        await a.start()
        await a.addresses.maintain()
        await a.publisher.publish()
        assert (await _holders(store, "tiny")) == ({cidr: "B"} if done else {})


async def test_killed_between_store_and_journal_a_lease_is_kept(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _tiny(a)
        cidr = IPv4Network("10.40.0.4/30")
        await a.stop()
        await store.txn([], [Put(block_key("tiny", cidr), encode(Block("tiny", cidr, "A")))])
        await a.start()
        assert await a.attach("web", "tiny", "10.40.0.5") in cidr
        assert _given(a, "tiny") == {cidr}


@pytest.mark.parametrize("remade", [None, IPv4Network("10.41.0.0/28"), IPv4Network("10.40.0.0/24")])
async def test_blocks_of_a_removed_network_go_with_it(store: Cuttable, tmp_path: Path, remade: IPv4Network | None) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _tiny(a, b)
        await a.attach("web", "tiny")
        await a.detach("web")
        await a.stop()
        await b.ops.remove_network("tiny", force=True)
        if remade is not None:
            await b.ops.ensure_network(NetworkRequest("tiny", remade, block_prefix=26 if remade.prefixlen == 24 else None))
        await a.start()
        await a.addresses.maintain()
        await a.publisher.publish()
        assert await _holders(store, "tiny") == {}
        if remade is not None:
            assert await a.attach("web", "tiny") in remade


async def test_a_removed_network_takes_the_blocks_of_nodes_that_run_with_it(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _tiny(a, b)
        await a.attach("web", "tiny")
        await a.detach("web")
        await b.ops.remove_network("tiny")
        await a.until(lambda: "tiny" not in a.view.snapshot.networks)
        await a.addresses.maintain()
        await a.publisher.publish()
        assert await _holders(store, "tiny") == {}


async def test_no_block_is_leased_of_a_network_that_is_gone(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _tiny(a, b)
        network = a.view.snapshot.networks["tiny"]
        a._task.cancel()  # A has not heard of the removal yet
        await b.ops.remove_network("tiny")
        with pytest.raises(NotFound, match="was removed"):
            await a.addresses.lease(network)
        assert await _holders(store, "tiny") == {}


def test_what_the_store_says_of_a_block_counts_at_once() -> None:
    """Before anything is brought in line: an address may be asked for in between."""
    view, block = View("A"), Block("tiny", TINY, "A")
    view.put(block)
    view.change([Change("put", Item(record_key(block), encode(replace(block, node="B")), 1, 1), 1)], 1)
    assert [b.node for b in view.snapshot.blocks.values()] == ["B"]


@pytest.mark.parametrize("gone", [False, True])
async def test_a_block_that_the_store_lost_is_taken_again_only_if_it_is_free(store: Cuttable, tmp_path: Path, gone: bool) -> None:
    """`gone`: its network was removed; else another node has the block now."""
    async with nodes(store, tmp_path, "A") as (a,):
        await _tiny(a)
        a._task.cancel()  # A hears no more
        await a.attach("web", "tiny")
        (block,) = a.addresses._own.of("tiny")
        key = record_key(block)
        ops: list[Put | Delete] = [Delete(key), Delete(network_key("tiny"))] if gone else [Put(key, encode(replace(block, node="B")))]
        await store.txn([], ops)
        with pytest.raises(StoreUnavailable, match="did not reach"):
            await a.publisher.publish()
        assert await _holders(store, "tiny") == ({} if gone else {block.cidr: "B"})


async def _away(a: FakeNode, b: FakeNode) -> set[str]:
    """A has published everything and is not there; the keys of its blocks."""
    await _tiny(a, b)
    await a.attach("web", "tiny")
    await a.publisher.publish()
    await a.stop()
    mine = {item.key for item in (await a.store.list("blocks/")).items if decode(Block, item.value, item.key).node == "A"}
    await b.until(lambda: mine <= set(b.view.stored("blocks/")))
    return mine


def _admin(node: FakeNode) -> AgentAdmin:
    return AgentAdmin(cast(Any, SimpleNamespace(view=node.view, store=node.store, caught_up=node.view.caught_up)))


async def test_a_removed_node_gives_everything_back(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        blocks = await _away(a, b)
        assert len(blocks) == 3, "one of tiny, of the default network one and a spare"
        await _admin(b).forget_node("A")
        left = {item.key for item in (await store.list("")).items}
        assert not blocks & left and not [key for key in left if key.startswith(("nodes/A", "endpoints/A"))]
        assert set((await _holders(store, "default")).values()) == {"B"}
        with pytest.raises(NotFound, match="no node 'A'"):
            await _admin(b).forget_node("A")
        await a.start()


async def test_a_node_that_gave_a_sign_of_life_is_not_removed(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        blocks = await _away(a, b)
        b._task.cancel()  # B hears no more, so that only the store knows
        await store.txn([], [Put(alive_key("A"), b"1")])
        with pytest.raises(Conflict, match="came back, or its blocks changed"):
            await _admin(b).forget_node("A")
        assert blocks <= {item.key for item in (await store.list("blocks/")).items}
        await a.start()


async def test_a_node_whose_block_went_to_another_is_not_removed_by_what_was(store: Cuttable, tmp_path: Path) -> None:
    """The removal would take the block from its new holder."""
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, _):
        (key,) = [key for key in await _away(a, b) if key.startswith("blocks/tiny")]
        b._task.cancel()
        block = decode(Block, (await _item(store, key)).value, key)
        await store.txn([], [Put(key, encode(replace(block, node="C")))])
        with pytest.raises(Conflict, match="came back, or its blocks changed"):
            await _admin(b).forget_node("A")
        assert (await _holders(store, "tiny"))[block.cidr] == "C"
        await a.start()


async def _item(store: Store, key: str) -> Item:
    item = await store.get(key)
    assert item is not None
    return item


@pytest.mark.parametrize("name", ["A", "B"])
async def test_down_purge_takes_what_is_the_nodes_own(tmp_path: Path, name: str) -> None:
    """Node A holds a block of a network called B, and the other way round: neither is found by its name alone."""
    paths = Paths(lib=tmp_path, etc=tmp_path, run=tmp_path)
    store = await SqliteStore.open(tmp_path / "store.db")
    blocks = {who: Block(of, IPv4Network(f"10.4{n}.0.0/30"), who) for n, (who, of) in enumerate((("A", "B"), ("B", "A")))}
    await store.txn([], [Put(record_key(block), encode(block)) for block in blocks.values()])
    await store.txn(
        [], [Put(f"{kind}/{who}{rest}", b"") for who in "AB" for kind, rest in (("nodes", ""), ("endpoints", "/x"), ("alive", ""))]
    )
    await store.close()
    assert await leave(Identity(name, "id", IPv4Address("198.18.0.1")), paths) == "left the cluster"
    store = await SqliteStore.open(tmp_path / "store.db")
    other = "B" if name == "A" else "A"
    left = sorted(item.key for item in (await store.list("")).items)
    assert left == sorted([record_key(blocks[other]), f"nodes/{other}", f"endpoints/{other}/x", f"alive/{other}"])
    await store.close()


async def test_many_nodes_that_lease_at_once_do_not_try_block_after_block(tmp_path: Path) -> None:
    """As when a network is made: all of them want the lowest free block at the same moment."""
    names = [f"n{number:02}" for number in range(40)]
    store = Counting()
    async with nodes(store, tmp_path, *names) as many:
        await many[0].networks.ensure(NetworkRequest("busy", IPv4Network("10.50.0.0/16")))
        await many[0].until(lambda: all("busy" in node.view.snapshot.networks for node in many))
        store.refused = 0
        await asyncio.gather(*(node.addresses.maintain() for node in many))
        held = [block.cidr for node in many for block in node.addresses._own.of("busy")]
        assert len(held) == len(set(held)) == 2 * len(many)
        assert store.refused <= 4 * len(many), "of more than a thousand, if each met the others at every block"
