# SPDX-License-Identifier: Apache-2.0
"""Nodes without hosts: the agent's real parts over the memory store and the fake kernel, for tests of what they do together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

from plait.agent.addresses import Addresses
from plait.agent.addressing import Addressing, learned
from plait.agent.dhcp import Leases, steady
from plait.agent.dhcpwires import Wires
from plait.agent.following import Following
from plait.agent.health import Health
from plait.agent.journal import Journal
from plait.agent.kernelwork import KernelWork, PassReport
from plait.agent.limits import LimitBook
from plait.agent.networks import Networks
from plait.agent.operations import AgentOperations
from plait.agent.publications import Publications
from plait.agent.publisher import Publisher
from plait.agent.view import View
from plait.ipam import NamedRange
from plait.kernel.fake import FakeKernel
from plait.model.cluster import Node, PortMapping
from plait.model.hostlinks import ChildLink
from plait.model.objects import Plan
from plait.plan import Local, plan_node
from plait.plan.guard import GUARDS
from plait.plan.shortcut import FastPath
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.store.api import Store
from plait.store.replica import Replica
from tests.support.dhcp import FakeServer, FakeWires

DEFAULT = "default"


class FakeNode:
    """One node. `start` and `stop` may be called again and again: what the journal keeps survives, nothing else does."""

    def __init__(self, name: str, number: int, store: Store, folder: Path) -> None:
        self.name, self.store, self.folder = name, store, folder / name
        self.kernel = FakeKernel()
        self._address = IPv4Address(f"198.18.0.{number}")
        self.reuse_after_s, self.clock = 0.0, time.monotonic
        self.ranges: list[NamedRange] = []
        self.fast_path = False
        self.links = frozenset({"lo"})
        self.next_report: PassReport | None = None
        self.dhcp: list[FakeServer] = []
        self.dhcp_timeout_s, self.dhcp_clock = 0.2, steady
        self.readdressed: list[ChildLink] = []

    async def start(self) -> None:
        self.journal = Journal(self.folder / "journal.db")
        self.view = View(self.name)
        self.replica = Replica(self.store, self.folder / "replica.bin")
        self.replica.subscribe(self.view.change)
        self.work = KernelWork(self.kernel)
        self.health = Health(time.time)
        self._make_leases()
        learn = partial(learned, self.leases)
        self.networks = Networks(self.view, self.store, DEFAULT, self.view.caught_up, able=self.kernel.capabilities, learn=learn)
        self.addresses = Addresses(self.view, self.store, self.journal, DEFAULT, False, self.reuse_after_s, lambda: self.ranges, self.clock)
        self.addressing = Addressing(self.addresses, self.leases, self.view, self.work.put)
        self.publisher = Publisher(self.view, self.store, self.view.caught_up)
        self.book = LimitBook(self.view, self.journal, lambda: self.kernel.capabilities(), self.full_pass, self.kernel)
        parts = self.view, self.journal, self.work, self.addressing, self.networks
        limiting = lambda: self.book.limiting  # noqa: E731
        self.ops = AgentOperations(*parts, self._settled, self.full_pass, self._fast_path, limiting)
        self.publications = Publications(self.view, self.ops, self.full_pass)
        self.following = Following(self.view, self.leases, self.ops, self.health, self._readdress)
        self.leases.recover()
        self._task = asyncio.create_task(self._run())
        await self.until(lambda: self.replica.synced)
        self._put_node()
        await self.networks.ensure(NetworkRequest(DEFAULT, IPv4Network("10.28.0.0/16")))
        await self.addresses.maintain()
        self._put_node()

    async def _run(self) -> None:
        """What an agent does by itself, as far as others wait for it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.replica.run())
            group.create_task(self.addresses.assigned.run())
            group.create_task(self.leases.run())
            group.create_task(self.following.run())

    def _make_leases(self) -> None:
        def wires(wake: Callable[[], None]) -> Wires:
            self.wires = FakeWires(self.dhcp, wake)
            return cast(Wires, self.wires)

        self.leases = Leases(self.journal, self.health, self.name, self.dhcp_timeout_s, wires, self.dhcp_clock)

    def _readdress(self, link: ChildLink) -> bool:
        self.readdressed.append(link)
        return True

    def _put_node(self) -> None:
        tunnel = self.addresses.tunnel_address()
        self.view.put(Node(self.name, self.name, self._address, vtep_mac="02:00:00:00:00:01", tunnel=tunnel))

    def _fast_path(self) -> FastPath:
        return FastPath(self.fast_path, "eth0" if self.fast_path else "")

    async def _settled(self) -> None:
        await asyncio.sleep(0)

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.work.close()
        self.journal.close()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 (a plain predicate over many objects; none of them tells of changes)
                await asyncio.sleep(0.005)

    async def converge(self) -> int:
        """Passes until one has nothing to do; returns the number of operations of the first."""
        first = (await self.full_pass()).writes
        for _ in range(3):
            if not (await self.full_pass()).writes:
                return first
        raise AssertionError("the kernel does not come to rest")

    async def full_pass(self, beginning: str = "") -> PassReport:
        """One pass; `next_report` stands for one that did nothing."""
        if self.next_report is not None:
            report, self.next_report = self.next_report, None
            return report
        return await self.work.converge(self._plan, True, beginning)

    def _plan(self) -> Plan:
        has, able = self._fast_path(), self.kernel.capabilities()
        ipv6, guards = "ipv6" in able, GUARDS & able
        local = Local(fast_path=has.ingress, shortcut=has.link, ipv6=ipv6, links=self.links, limiting=self.book.limiting, guards=guards)
        return plan_node(self.view.snapshot, local)

    async def attach(
        self,
        name: str,
        network: str = DEFAULT,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        ports: tuple[PortMapping, ...] = (),
    ) -> IPv4Address:
        request = AttachRequest(
            endpoint=f"{self.name}.{name}",
            network=network,
            runtime="sandbox",
            container=name,
            name=name,
            address=IPv4Address(address) if address else None,
            labels=labels or {},
            ports=ports,
        )
        return (await self.ops.attach(request)).address

    async def detach(self, name: str) -> None:
        await self.ops.detach(f"{self.name}.{name}")


@contextlib.asynccontextmanager
async def nodes(store: Store, folder: Path, *names: str) -> AsyncIterator[list[FakeNode]]:
    """Started nodes over one store."""
    made = [FakeNode(name, number, store, folder) for number, name in enumerate(names, 1)]
    for node in made:
        await node.start()
    try:
        yield made
    finally:
        for node in made:
            await node.stop()
