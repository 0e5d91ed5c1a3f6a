# SPDX-License-Identifier: Apache-2.0
"""The host's own address in a network: the agent's parts together, over the memory store and the fake kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.exposures import Exposures
from plait.dns.zone import Zone
from plait.model.errors import Conflict, NotFound, PoolExhausted
from plait.model.objects import Addr, Route
from plait.runtimes.api import NetworkRequest

A, N = IPv4Address, IPv4Network
INNER = NetworkRequest("inner", N("10.40.0.0/16"), internal=True)


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


def addresses(node: FakeNode) -> set[str]:
    """Of the host's own links, in the network 10.40.0.0/16."""
    held = (o for o in node.kernel.objects.values() if isinstance(o, Addr))
    return {f"{o.address} {o.dev}" for o in held if o.address.ip in INNER.subnet and o.address.ip != A("10.40.0.1")}


def sources(node: FakeNode) -> set[str]:
    """What the host speaks from into that network."""
    routes = (o for o in node.kernel.objects.values() if isinstance(o, Route) and o.kind == "unicast")
    return {str(o.src) for o in routes if o.dst.network_address in INNER.subnet}


async def test_exposed_twice_and_hidden_twice(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(INNER)
        await b.attach("far", "inner")
        await a.attach("before", "inner")
        await b.publisher.publish()
        exposures = Exposures("A", a.ops)
        first = await exposures.expose("inner")
        assert await exposures.expose("inner") == first
        assert addresses(a) == {f"{first.address}/32 pl-gw"}
        await a.attach("after", "inner")
        assert sources(a) == {str(first.address)}, "to containers here, whenever they came, and to those of others"
        assert await a.converge() == 0
        await exposures.hide("inner")
        await exposures.hide("inner")
        assert addresses(a) == set() and await a.converge() == 0
        assert str(first.address) not in sources(a)


async def test_the_address_outlives_the_agent_and_comes_back_after_a_withdrawal(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(INNER)
        first = await Exposures("A", a.ops).expose("inner")
        await a.stop()
        await a.start()
        await a.ops.recover()
        await Exposures("A", a.ops).recover()
        await a.converge()
        assert addresses(a) == {f"{first.address}/32 pl-gw"}
        await Exposures("A", a.ops).hide("inner")
        await a.attach("another", "inner")
        assert (await Exposures("A", a.ops).expose("inner")).address == first.address


async def test_it_is_no_container_in_dns(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await Exposures("A", a.ops).expose("default")
        zone = Zone(a.view.snapshot, "consul", "dc1", "plait", only_passing=False)
        assert "host" not in str(zone.table.names)


async def test_what_stands_against_it_is_named(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        exposures = Exposures("A", a.ops)
        with pytest.raises(NotFound, match="no network 'nowhere'"):
            await exposures.expose("nowhere")
        with pytest.raises(NotFound, match="no network 'nowhere'; `plait network ls` lists them"):
            await exposures.hide("nowhere")
        await a.ops.ensure_network(NetworkRequest("tiny", N("10.41.0.0/30")))
        await a.attach("only", "tiny")
        with pytest.raises(PoolExhausted, match="tiny"):
            await exposures.expose("tiny")
        assert a.ops.endpoints("host") == {}
        await a.ops.ensure_network(INNER)
        await exposures.expose("inner")
        await a.publisher.publish()
        with pytest.raises(Conflict, match="in use by host A on A"):
            await a.ops.remove_network("inner")


async def test_of_a_network_that_was_removed_by_force_nothing_stays(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(INNER)
        exposures = Exposures("A", a.ops)
        await exposures.expose("inner")
        await a.ops.remove_network("inner", force=True)
        await a.converge()
        assert addresses(a) == set()
        await a.ops.ensure_network(NetworkRequest("inner", N("10.42.0.0/16")))
        assert (await exposures.expose("inner")).address in N("10.42.0.0/16"), "made anew with other addresses"
        await a.ops.remove_network("inner", force=True)
        await exposures.recover()
        assert a.ops.endpoints("host") == {}
