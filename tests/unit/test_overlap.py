# SPDX-License-Identifier: Apache-2.0
"""Pools and what hosts use the same addresses for: refused when a network is made, named when it comes later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cluster import nodes
from tests.support.consulapi import Cuttable

from plait.agent.health import Health
from plait.agent.hostranges import HostRangesWatch
from plait.ipam import clashes, own_ranges, taken
from plait.ipam.dual import check_network6
from plait.ipam.overlap import MOST, overlapping
from plait.model.cluster import HostRange, HostRanges, Network, Snapshot
from plait.model.errors import ConfigError
from plait.model.service import VIP_POOL, VIP_POOL6, Service, ServicePort
from plait.runtimes.api import NetworkRequest

N = IPv4Network
VPN = HostRange(N("10.50.0.0/20"), "route via 192.0.2.1 dev tun0")


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


def test_default_routes_and_ones_own_bridge_are_no_foreign_use() -> None:
    texts = ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "127.0.0.0/8", "224.0.0.0/4", "10.28.0.0/24", "10.28.0.0/16", "192.168.1.0/24"]
    found = own_ranges([HostRange(N(text), "route") for text in texts], N("10.28.0.0/24"))
    assert [str(one.cidr) for one in found] == ["10.28.0.0/16", "192.168.1.0/24"]


NETWORKS = st.tuples(st.integers(0, 255), st.integers(12, 30)).map(lambda p: N((f"10.{p[0]}.0.0", p[1]), strict=False))


@given(st.lists(NETWORKS, max_size=100), NETWORKS)
def test_what_is_published_overlaps_exactly_what_was_found(found: list[IPv4Network], subnet: IPv4Network) -> None:
    kept = own_ranges([HostRange(one, "route") for one in found], None)
    assert len(kept) <= MOST and len({one.cidr for one in kept}) == len(kept)
    if len(kept) < MOST:
        assert any(one.cidr.overlaps(subnet) for one in kept) == any(one.overlaps(subnet) for one in found)
    snapshot = Snapshot("A", host_ranges={"A": HostRanges("A", kept)})
    assert bool(list(overlapping(subnet, snapshot))) == any(one.cidr.overlaps(subnet) for one in kept)
    assert set(taken(snapshot)) == {one.cidr for one in kept} | {VIP_POOL}


def test_clashes_name_network_thing_and_host_but_not_what_was_made_on_purpose() -> None:
    mesh, forced = (
        Network(n, N(s), N(s)[1], 24, options=o)
        for n, s, o in (("mesh", "10.50.0.0/16", {}), ("x", "10.50.0.0/16", {"plait.force": "true"}))
    )
    snapshot = Snapshot("A", networks={"mesh": mesh, "x": forced}, host_ranges={"B": HostRanges("B", (VPN,))})
    assert clashes(snapshot) == {"mesh": "network mesh overlaps 10.50.0.0/20 (route via 192.0.2.1 dev tun0 on node B)"}


def test_virtual_addresses_are_taken_where_there_are_services() -> None:
    service = Service("web", "default", VIP_POOL[1], (ServicePort("tcp", 80, 8080),), {"app": "web"})
    old, snapshot = Network("old", N("10.27.4.0/24"), N("10.27.4.0/24")[1], 28), Snapshot("A")
    assert not list(overlapping(old.subnet, snapshot))
    assert taken(snapshot) == [VIP_POOL], "no network that is chosen by itself has them"
    snapshot = replace(snapshot, networks={"old": old}, services={service.ident: service})
    assert clashes(snapshot) == {"old": "network old overlaps 10.27.0.0/16 (virtual addresses of services)"}


def test_no_network_lies_over_virtual_addresses_of_ipv6() -> None:
    subnet = VIP_POOL6.supernet(new_prefix=64)
    with pytest.raises(ConfigError, match=r"overlaps fd55:aa3d:5f3e::/112 \(virtual addresses of services\)"):
        check_network6(Network("six", N("10.29.0.0/16"), N("10.29.0.0/16")[1], 24, subnet6=subnet, gateway6=subnet[1]), ())
    service = Service("web", "default", VIP_POOL[1], (ServicePort("tcp", 80, 8080),), {"app": "web"})
    old = Network("old", N("10.29.0.0/16"), N("10.29.0.0/16")[1], 24, subnet6=subnet)
    assert clashes(Snapshot("A", networks={"old": old}, services={service.ident: service})) == {
        "old": f"network old overlaps {VIP_POOL6} (virtual addresses of services)"
    }


async def test_a_network_over_what_any_host_uses_is_refused_unless_forced(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        health = Health(lambda: 0.0)
        watch = HostRangesWatch(b.view, health, lambda: [VPN], lambda: [HostRange(N("10.29.0.0/16"), "Docker network 'old'")], lambda: None)
        await watch.look()
        await b.publisher.publish()
        await a.until(lambda: "B" in a.view.snapshot.host_ranges)
        with pytest.raises(ConfigError, match=r"overlaps 10\.50\.0\.0/20 \(route via 192\.0\.2\.1 dev tun0 on node B\); .*--force"):
            await a.ops.ensure_network(NetworkRequest("mesh", N("10.50.0.0/16")))
        assert "mesh" not in a.view.snapshot.networks
        assert (await a.ops.ensure_network(NetworkRequest("auto"))).subnet == N("10.30.0.0/16"), "chosen clear of Docker's"
        made = await a.ops.ensure_network(NetworkRequest("mesh", N("10.50.0.0/16"), force=True))
        assert (await a.ops.ensure_network(NetworkRequest("mesh", N("10.50.0.0/16")))) == made, "asked for again by an engine"


async def test_what_comes_later_is_named_and_forgotten_when_it_goes(
    store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.agent.hostranges.APART_S", 0.01)
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(NetworkRequest("mesh", N("10.50.0.0/16")))
        routes: list[HostRange] = []
        health = {node.name: Health(lambda: 0.0) for node in (a, b)}
        watches = [HostRangesWatch(n.view, health[n.name], lambda n=n: routes if n is b else [], list, lambda: None) for n in (a, b)]
        running = [asyncio.create_task(watch.run()) for watch in watches]
        try:
            for expected in ([VPN], []):
                routes[:], count = expected, len(expected)
                watches[1].mark()
                await b.until(lambda count=count: len(b.view.snapshot.host_ranges.get("B", HostRanges("B")).ranges) == count)
                await b.publisher.publish()
                for name in "AB":
                    await a.until(lambda name=name, count=count: len(health[name].active()) == count)
                    assert [(c.condition.code, c.subject) for c in health[name].active()] == [("pool-overlaps", "mesh")] * count
        finally:
            for task in running:
                task.cancel()


async def test_a_kernel_that_cannot_be_read_changes_nothing(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        answers: list[list[HostRange]] = [[VPN]]

        def read() -> list[HostRange]:
            if not answers:
                raise OSError("netlink is gone")
            return answers.pop()

        watch = HostRangesWatch(a.view, Health(lambda: 0.0), read, list, lambda: None)
        await watch.look()
        await watch.look()
        assert a.view.snapshot.host_ranges["A"].ranges == (VPN,)
