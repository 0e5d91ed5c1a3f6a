# SPDX-License-Identifier: Apache-2.0
"""What an endpoint that comes, goes or publishes ports changes in the kernel at once, before its caller is answered.

Data in: the view as it is by now, and this node's endpoints as they were before. Data out: the fewest operations that make the kernel what
the next pass would; where that is not sure to be all, the pass itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from plait.agent.kernelwork import KernelWork, PassReport
from plait.agent.view import View
from plait.backends import child_of
from plait.ipam import block_of
from plait.model.cluster import Endpoint, Network
from plait.model.errors import KernelError, NotFound
from plait.model.hostlinks import ChildGuard
from plait.model.objects import KernelObject, NftChain, Sysctl
from plait.plan import endpoint_objects, member
from plait.plan.desired import is_child, is_port, link_guard, shared_objects
from plait.plan.entrance import entrance
from plait.plan.exposed import HOST, exposed_here, spoken
from plait.plan.fastpath import on_fast_path
from plait.plan.firewall import port_objects
from plait.plan.guard import CAPABILITY as GUARD
from plait.plan.guard import CHILDREN, PORTS, own_addresses
from plait.plan.limits import endpoint_limits, way_of
from plait.plan.shortcut import FastPath, deliveries, quick_objects
from plait.plan.wires import at_parents, wire_objects
from plait.policy.isolation import governed
from plait.runtimes.api import network_named
from plait.shaping import Limiting


class FullPass(Protocol):
    """Makes the kernel what the view says. `beginning`: see `KernelWork.converge`."""

    def __call__(self, beginning: str = "") -> Awaitable[PassReport]: ...


class Plumbing:
    """`fast_path` and `limiting`: what the plan has of these."""

    def __init__(
        self,
        view: View,
        kernel: KernelWork,
        full_pass: FullPass,
        fast_path: Callable[[], FastPath],
        limiting: Callable[[], Limiting],
    ) -> None:
        self._view, self._kernel, self._full_pass, self._fast_path = view, kernel, full_pass, fast_path
        self._limiting = limiting

    async def put(self, endpoint: Endpoint, before: Sequence[Endpoint]) -> None:
        """All of a new endpoint at once: each change of the nft tables costs the kernel some milliseconds. A refusal in these leads to a
        full pass, as after every change of ports; one of a link or route is raised."""
        if endpoint.runtime == HOST:
            await self._full_pass()  # the routes of the whole network are spoken from another address now
            return
        network = self._network(endpoint.network)
        limits = self._limiting().of(endpoint, network)
        if self._judged_together() or limits.counts() or self._limiting().ports_of(endpoint):  # elements of sets that all share
            await self._plumb_policed(endpoint)
            return
        fresh = [*shared_objects(member(self._view.snapshot, network), network), *self._objects(endpoint)]
        fresh += quick_objects(self._view.snapshot, network, endpoint, way_of(limits, self._fast_path()))
        fresh += self._entrances([endpoint])
        maps, old_maps, unused = self._port_maps(before)
        wires, old_wires, _ = self._wires(before)
        try:
            await self._kernel.put([*fresh, *maps, *wires], [*[None] * len(fresh), *old_maps, *old_wires], unused)
        except KernelError as error:
            if not str(error.key).startswith(("nft ", "delivery ")):
                raise
            await self._full_pass()
            return
        block = self._view.snapshot.blocks.get((network.name, block_of(network, endpoint.address)))
        if block is not None and block.node != endpoint.node:
            await self._full_pass()  # what leads to the whole block must make an exception now

    async def _plumb_policed(self, endpoint: Endpoint) -> None:
        """All of a new endpoint by a whole pass: what policies and services make of it, and of others because of it, is in force with it
        or it is not attached at all. The pass behind it does the rest (`KernelWork`). KernelError."""
        failed = (await self._full_pass(endpoint.dev)).failed
        for key, error in failed.items():
            if key[0] in ("pass", "nft") or endpoint.dev in key:
                raise error

    async def remove(self, endpoint: Endpoint, before: Sequence[Endpoint]) -> None:
        """Take away what one needs that is in the view no longer. What the kernel refuses, the next pass does."""
        gone: list[KernelObject] = []
        if endpoint.runtime == HOST:
            await self._full_pass()  # first other routes, then the address goes, which would take them with it
        else:
            with contextlib.suppress(NotFound):
                gone += deliveries(self._view.snapshot, self._network(endpoint.network), endpoint, self._fast_path().link)
                gone += self._guard_inside(endpoint)
                gone += [o for o in reversed(self._objects(endpoint)) if not isinstance(o, Sysctl | NftChain)]
        by_pass = bool(self._view.snapshot.services or (endpoint.ports and governed(self._view.snapshot)))
        by_pass = by_pass or bool(self._limiting().ports_of(endpoint))  # the address may soon be another's
        try:
            maps, old_maps, unused = self._port_maps(before) if endpoint.ports and not by_pass else ([], [], [])
            wires, old_wires, unused_wires = self._wires(before)
            await self._kernel.put([*maps, *wires], [*old_maps, *old_wires], [*gone, *unused])
            if unused_wires:  # to which nothing leads any more
                await self._kernel.put([], [], unused_wires)
        except KernelError:
            by_pass = by_pass or bool(endpoint.ports)
        if by_pass:
            await self._full_pass()

    async def ports_changed(self, before: Sequence[Endpoint]) -> None:
        """Bring the port maps from what `before` asks for to what the view asks for now, element by element. Where the kernel
        holds something else (a pass came between, somebody flushed the table) a full pass finds out and makes it true, as while there are
        policies or services, which have a say in what is tracked and in who takes the fast path, or limits of ports."""
        if self._judged_together() or any(map(self._limiting().ports_of, (*self._own(), *before))):
            await self._full_pass()
            return
        try:
            await self._kernel.put(*self._port_maps(before))
        except KernelError:
            await self._full_pass()
            return
        ports = {e.id: e.ports for e in before}
        await self._quicken([e for e in self._own() if e.ports != ports.get(e.id, ())])

    def _port_maps(self, before: Sequence[Endpoint]) -> tuple[list[KernelObject], list[KernelObject], list[KernelObject]]:
        """What ports want of the kernel now, what they wanted when the node's endpoints were those, and what of that they want no more."""
        networks = self._view.snapshot.networks.values()
        now, old = port_objects(self._own(), networks), port_objects(before, networks)
        return now, old[: len(now)], old[len(now) :]

    async def _quicken(self, endpoints: Sequence[Endpoint]) -> None:
        """Let what these endpoints send take the fast path, if this kernel has it."""
        endpoints = [endpoint for endpoint in endpoints if on_fast_path(self._network(endpoint.network))]
        if not self._fast_path().ingress or not endpoints:
            return
        try:
            await self._kernel.put(self._entrances(endpoints))
        except KernelError:
            await self._full_pass()

    def _judged_together(self) -> bool:
        """Whether what one endpoint is decides over the objects of others."""
        snapshot = self._view.snapshot
        return bool(governed(snapshot) or snapshot.services or any(egress.selector for egress in snapshot.egress.values()))

    def _entrances(self, endpoints: Sequence[Endpoint]) -> list[KernelObject]:
        """What the links of these endpoints do to what comes in by them, those on links of the host to what is forged alone."""
        able = self._kernel.capabilities()
        own = own_addresses(self._view.snapshot) if able & {GUARD, PORTS, CHILDREN} else {}
        limiting, fast, networks = self._limiting(), self._fast_path().ingress, {e.id: self._network(e.network) for e in endpoints}
        routed = [e for e in endpoints if child_of(networks[e.id]) is None]
        chains = [
            chain
            for e in routed
            for chain in entrance(networks[e.id], e, own.get(e.id) if GUARD in able else None, fast, limiting=limiting)
        ]
        linked = [e for e in endpoints if child_of(n := networks[e.id]) is not None and (PORTS if is_port(n) else CHILDREN) in able]
        return chains + [guard for e in linked for guard in link_guard(networks[e.id], e, own[e.id])]

    def _wires(self, before: Sequence[Endpoint]) -> tuple[list[KernelObject], list[KernelObject | None], list[KernelObject]]:
        """Of what judges this node's children of links of the host on the host, what differs from when its endpoints were `before`, what it
        was then, and what of that is no more, what leads to others first."""
        now, old = ({o.key: o for o in self._at_parents(endpoints)} for endpoints in (self._own(), before))
        differing = [obj for key, obj in now.items() if obj != old.get(key)]
        return differing, [old.get(obj.key) for obj in differing], [obj for key, obj in reversed(old.items()) if key not in now]

    def _at_parents(self, endpoints: Sequence[Endpoint]) -> list[KernelObject]:
        snapshot = self._view.snapshot
        linked = {name: network for name, network in snapshot.networks.items() if is_child(network)}
        lying = [(linked[e.network], e) for e in endpoints if e.network in linked] if linked else []
        if not lying or not at_parents(self._kernel.capabilities()):
            return []
        return wire_objects(lying, own_addresses(replace(snapshot, endpoints={e.id: e for e in endpoints})))

    def _guard_inside(self, endpoint: Endpoint) -> list[KernelObject]:
        """What judges it in its namespace, by name alone."""
        inside = is_child(self._network(endpoint.network)) and CHILDREN in self._kernel.capabilities()
        return [ChildGuard(endpoint.dev, endpoint.netns, "")] if inside and endpoint.netns else []

    def _objects(self, endpoint: Endpoint) -> list[KernelObject]:
        snapshot, network = self._view.snapshot, self._network(endpoint.network)
        found = spoken(endpoint_objects(member(snapshot, network), network, endpoint), snapshot, exposed_here(snapshot))
        return found + endpoint_limits(member(snapshot, network), network, endpoint, self._limiting())

    def _own(self) -> list[Endpoint]:
        return [e for e in self._view.snapshot.endpoints.values() if e.node == self._view.me]

    def _network(self, name: str) -> Network:
        return network_named(self._view.snapshot.networks, name)
