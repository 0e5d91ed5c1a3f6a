# SPDX-License-Identifier: Apache-2.0
"""The lease of a host that all containers of a network on it share: taken when the network asks for it, kept over a kill, given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.dhcp import FakeServer

from plait.agent.hostleases import HostLeases
from plait.dhcp.message import Kind, Option
from plait.model.errors import ConfigError, Conflict
from plait.plan.hostlease import HostLease
from plait.runtimes.api import NetworkRequest
from plait.store.memory import MemoryStore

TEN, MAC = IPv4Address("198.18.0.10"), "02:00:00:00:00:11"
SHARED = NetworkRequest("shared", IPv4Network("10.44.0.0/24"), options={"lease": "lo"})


class Host:
    """A node with a server on its link, and what it told its neighbours."""

    def __init__(self, node: FakeNode) -> None:
        self.node, self.told, self.marks = node, list[tuple[str, IPv4Address]](), 0
        node.dhcp[:] = [FakeServer()]

    @property
    def server(self) -> FakeServer:
        return self.node.dhcp[0]

    def mac_of(self, link: str) -> str:
        if link != "lo":
            raise OSError(19, "No such device")
        return MAC

    def mark(self) -> None:
        self.marks += 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[HostLeases]:
        node = self.node
        made = HostLeases(node.view, node.leases, node.health, self.mac_of, lambda *told: self.told.append(told))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(made.run(self.mark))
            yield made
            task.cancel()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        yield Host(a)


async def test_it_is_taken_with_the_links_mac_shown_and_given_back(host: Host) -> None:
    async with host.running() as leases:
        await host.node.ops.ensure_network(SHARED)
        await host.node.until(lambda: leases.known == {"shared": HostLease("lo", TEN)})
        assert host.server.heard[-1].mac.hex(":") == MAC and host.server.heard[-1].text(Option.HOST_NAME) == "a"
        await host.node.until(lambda: host.told == [("lo", TEN)])
        assert [(r.network, r.address, r.name) for r in leases.reservations()] == [("shared", TEN, "A")]
        assert host.node.addressing.reservations() == [] and host.node.ops.idle() == [], "no container's"
        before = host.marks
        await host.node.ops.change_network("shared", {"lease": ""})
        await host.node.until(lambda: leases.known == {} and host.server.leases == {} and host.marks > before)


async def test_a_killed_agent_has_the_same_one_and_asks_whether_it_may(host: Host) -> None:
    async with host.running() as leases:
        await host.node.ops.ensure_network(SHARED)
        await host.node.until(lambda: "shared" in leases.known)
    await host.node.stop()
    await host.node.start()
    await host.node.ops.recover()
    async with host.running() as leases:
        assert leases.known == {"shared": HostLease("lo", TEN)}, "from the first moment"
        await host.node.until(lambda: [s.message.kind for s in host.node.wires.sent] == [Kind.REQUEST])
        assert list(host.server.leases.values()) == [TEN]


async def test_what_is_lacking_is_said_and_tried_again(host: Host) -> None:
    host.server.silent = True
    async with host.running() as leases:
        await host.node.ops.ensure_network(SHARED)
        await host.node.ops.ensure_network(replace(SHARED, name="gone", subnet=IPv4Network("10.45.0.0/24"), options={"lease": "eth7"}))
        await host.node.until(lambda: len(host.node.health.active()) == 2)
        said = str(host.node.health.active())
        assert "network gone: this host has no link eth7 (No such device)" in said and "no server answered on link lo" in said
        host.server.silent = False
        await host.node.ops.change_network("gone", {"lease": ""})
        await host.node.until(lambda: "shared" in leases.known and host.node.health.active() == [])


async def test_what_cannot_be_is_refused(host: Host) -> None:
    ops = host.node.ops
    for request, what in (
        (replace(SHARED, internal=True), "no way out"),
        (replace(SHARED, options={"lease": "pl-gw"}), "is no link of a host"),
        (replace(SHARED, options={"lease": "lo", "backend": "wireguard"}), "means nothing to backend wireguard"),
        (replace(SHARED, options={"lease": "lo", "backend": "macvlan", "parent": "lo"}), "means nothing to backend macvlan"),
    ):
        with pytest.raises(ConfigError, match=what):
            await ops.ensure_network(request)
    await ops.ensure_network(replace(SHARED, internal=True, options={}))
    with pytest.raises(ConfigError, match="no way out"):
        await ops.change_network("shared", {"lease": "lo"})
    with pytest.raises(Conflict, match="lease none, not lo"):
        await ops.ensure_network(SHARED)
