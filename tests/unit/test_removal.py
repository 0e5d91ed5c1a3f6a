# SPDX-License-Identifier: Apache-2.0
"""Nodes that are gone for long are removed by themselves: not a moment early, once, and never on hearsay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.config import parse_config
from plait.agent.keys import alive_key
from plait.agent.removal import Forgetting
from plait.model.errors import ConfigError, PoolExhausted
from plait.runtimes.api import NetworkRequest
from plait.store.api import Delete, Put


@dataclass
class Watch:
    """Time, whether the store is heard, and whether hosts answer echoes."""

    now: float = 0.0
    connected: bool = True
    echoes: bool = False

    async def answers(self, _: IPv4Address) -> bool:
        return self.echoes


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


def forgetting(node: FakeNode, watch: Watch, after_s: float = 60.0) -> Forgetting:
    return Forgetting(node.view, node.store, after_s, lambda: watch.connected, watch.answers, lambda: watch.now)


async def _owner_of_all_dies(store: Cuttable, *made: FakeNode) -> None:
    """The first holds all of a pool and gives no sign of life any more."""
    first, *others = made
    await first.ops.ensure_network(NetworkRequest("tiny", IPv4Network("10.40.0.0/28")))
    await store.txn([], [Put(alive_key(node.name), b"1") for node in made])
    for number in range(13):
        await first.attach(f"c{number}", "tiny")
    await first.publisher.publish()
    await first.stop()
    for node in others:
        await node.until(lambda node=node: sum(b.network == "tiny" for b in node.view.snapshot.blocks.values()) == 4)
        with pytest.raises(PoolExhausted, match="held by A: 4 blocks"):
            await node.attach("early", "tiny")
    await store.txn([], [Delete(alive_key("A"))])
    for node in others:
        await node.until(lambda node=node: "A" not in node.view.snapshot.alive)


async def test_the_owner_of_everything_dies_and_two_allocate_at_once(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B", "C") as (a, b, c):
        await _owner_of_all_dies(store, a, b, c)
        watch = Watch()
        each = [forgetting(node, watch) for node in (b, c)]
        for watch.now in (0.0, 59.0):
            await asyncio.gather(*(one.look() for one in each))
            assert "A" in b.view.snapshot.nodes
        watch.now = 60.0
        await asyncio.gather(*(one.look() for one in each))
        for node in (b, c):
            await node.until(lambda node=node: "A" not in node.view.snapshot.nodes)
        got = await asyncio.gather(*((b, c)[n % 2].attach(f"d{n}", "tiny") for n in range(8)))
        assert len(set(got)) == 8
        await a.start()
        await a.publisher.publish()
        kept = {e.address for e in a.ops.endpoints("sandbox").values() if e.network == "tiny"}
        assert len(kept) == 13, "its containers live"
        await store.txn([], [Put(alive_key("A"), b"1")])


async def test_of_a_pool_full_of_addresses_that_may_live_on_nobody_leases_more_than_it_needs(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _owner_of_all_dies(store, a, b)
        watch = Watch()
        one = forgetting(b, watch)
        for watch.now in (0.0, 60.0):
            await one.look()
        await b.until(lambda: "A" not in b.view.snapshot.nodes)
        for number, blocks in enumerate((1, 1, 2), 1):  # the first of them has but two addresses to give
            await b.attach(f"d{number}", "tiny")
            assert sum(block.network == "tiny" for block in b.view.snapshot.blocks.values()) == blocks
        await a.start()


async def test_who_comes_back_in_time_is_not_removed(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _owner_of_all_dies(store, a, b)
        watch = Watch()
        one = forgetting(b, watch)
        await one.look()
        await store.txn([], [Put(alive_key("A"), b"1")])
        await b.until(lambda: "A" in b.view.snapshot.alive)
        watch.now = 59.0
        await one.look()
        await store.txn([], [Delete(alive_key("A"))])
        await b.until(lambda: "A" not in b.view.snapshot.alive)
        watch.now = 61.0
        await one.look()
        assert "A" in b.view.snapshot.nodes, "it is counted anew"
        await a.start()


async def test_without_the_store_nobody_is_found_dead(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _owner_of_all_dies(store, a, b)
        watch = Watch()
        one = forgetting(b, watch)
        await one.look()
        watch.connected, watch.now = False, 100.0
        await one.look()
        watch.connected = True
        await one.look()
        assert "A" in b.view.snapshot.nodes, "while the store was not heard no time went by"
        store.away, watch.now = True, 161.0
        await one.look()
        store.away = False
        assert "A" in b.view.snapshot.nodes
        watch.now = 172.0
        await one.look()
        assert "A" not in b.view.snapshot.nodes
        await a.start()


async def test_where_only_the_agent_is_gone_its_containers_keep_their_addresses(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _owner_of_all_dies(store, a, b)
        watch = Watch(echoes=True)
        one = forgetting(b, watch)
        for watch.now in (0.0, 60.0, 500.0):
            await one.look()
        assert "A" in b.view.snapshot.nodes
        watch.echoes, watch.now = False, 511.0
        await one.look()
        assert "A" not in b.view.snapshot.nodes
        await a.start()


def test_the_time_is_off_by_default_and_not_too_short() -> None:
    assert parse_config({}, "f").forget_after_s == 0.0
    assert parse_config({"ipam": {"forget_after": "1h", "reuse_after": "0s"}}, "f").forget_after_s == 3600.0
    with pytest.raises(ConfigError, match=r"ipam\.forget_after.*'5s'.*shorter than a reboot"):
        parse_config({"ipam": {"forget_after": "5s"}}, "f")
    with pytest.raises(ConfigError, match=r"ipam\.reuse_after: 'soon' is no duration"):
        parse_config({"ipam": {"reuse_after": "soon"}}, "f")


async def test_what_may_live_on_with_a_removed_node_is_given_last(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(NetworkRequest("tiny", IPv4Network("10.40.0.0/28")))
        kept = {await a.attach(f"c{number}", "tiny") for number in (0, 1)}
        await a.publisher.publish()
        await a.stop()
        await b.until(lambda: len(b.view.snapshot.endpoints) == 2)
        watch = Watch()
        one = forgetting(b, watch)
        for watch.now in (0.0, 60.0):
            await one.look()
        got = {await b.attach(f"d{number}", "tiny") for number in range(11)}
        assert not got & kept
        await a.start()
        await a.publisher.publish()
        await b.until(lambda: not b.view.snapshot.ghosts)
        assert {e.address for e in b.view.snapshot.endpoints.values() if e.node == "A"} == kept, "seen in use again"
        with pytest.raises(PoolExhausted):
            await b.attach("more", "tiny")


async def test_with_nothing_else_left_even_that_is_given(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _owner_of_all_dies(store, a, b)
        watch = Watch()
        one = forgetting(b, watch)
        for watch.now in (0.0, 60.0):
            await one.look()
        assert len({await b.attach(f"d{number}", "tiny") for number in range(13)}) == 13
        await a.start()
