# SPDX-License-Identifier: Apache-2.0
"""Who holds a block after nodes, networks and copies of the store went and came back: never two, and never nobody for good."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.keys import block_key, blocks_prefix
from plait.agent.reports import strays
from plait.model.cluster import Block
from plait.model.errors import Conflict, NotFound
from plait.runtimes.api import NetworkRequest
from plait.store.api import Delete, Put
from plait.store.codec import decode, encode

TINY = IPv4Network("10.40.0.0/28")


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
    return {block.cidr for block in node.addresses._own_blocks(network)}


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
