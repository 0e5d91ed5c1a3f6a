# SPDX-License-Identifier: Apache-2.0
"""What runtimes may ask: `Operations` of `runtimes/api.py`, on the view, the journal and the kernel.

Order inside an attach: reserve the address, journal the endpoint, show it to the view, make the kernel objects, wait until the DNS
child answers the name; then reply. A crash at any point leaves a journalled endpoint (found again by the runtime or removed by its
garbage collection) or a reservation without endpoint (released at the next start). Every call takes the endpoint's own lock only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from plait.agent.addressing import Addressing
from plait.agent.apart import choose6, endpoint_of
from plait.agent.hostlinks import as_leased, check_ports, mac_of, permit
from plait.agent.journal import Journal, Write
from plait.agent.kernelwork import KernelWork
from plait.agent.limits import check_asked
from plait.agent.networks import Networks
from plait.agent.plumbing import FullPass, Plumbing
from plait.agent.ports import assign_ports, ephemeral_range
from plait.agent.view import View
from plait.ipam import Asker, PoolChange, Reservation, check_overlaps, held_by, origin, origin_of, taken
from plait.model.cluster import Container, Endpoint, Network, PortMapping
from plait.model.errors import Conflict, NotFound, NotSupported, PlaitError
from plait.model.ports import labelled, same_place
from plait.model.spoofing import LABEL as SPOOFING
from plait.model.spoofing import check_spoofing
from plait.plan import carried, guarded
from plait.plan.desired import local_ports
from plait.plan.shortcut import FastPath
from plait.runtimes.api import AttachRequest, NetworkRequest, network_named, paired
from plait.shaping import Limiting
from plait.store.codec import decode, encode

log = logging.getLogger("plait.operations")


class AgentOperations:
    """Implements `runtimes.api.Operations`. `names_settled` waits until this host's DNS answers what the view
    says, `fast_path` and `limiting`: what the plan has of these."""

    def __init__(
        self,
        view: View,
        journal: Journal,
        kernel: KernelWork,
        addresses: Addressing,
        networks: Networks,
        names_settled: Callable[[], Awaitable[None]],
        full_pass: FullPass,
        fast_path: Callable[[], FastPath] = FastPath,
        limiting: Callable[[], Limiting] = Limiting,
    ) -> None:
        self._view, self._journal, self._kernel = view, journal, kernel
        self._addresses, self._networks, self._names_settled = addresses, networks, names_settled
        self._full_pass, self._plumbing = full_pass, Plumbing(view, kernel, full_pass, fast_path, limiting)
        self._locks: dict[str, asyncio.Lock] = {}
        self._ports_lock, self._guard_lock = asyncio.Lock(), asyncio.Lock()
        for key, body in journal.load("endpoint").items():
            view.put(decode(Endpoint, body, key))

    # --- networks and addresses

    def networks(self) -> Mapping[str, Network]:
        return self._view.snapshot.networks

    def taken(self) -> Sequence[IPv4Network]:
        return taken(self._view.snapshot)

    def check_overlaps(self, subnet: IPv4Network) -> None:
        check_overlaps(subnet, self._view.snapshot)

    async def ensure_network(self, request: NetworkRequest) -> Network:
        network = await self._networks.ensure(request)
        await self._addresses.maintain()
        return network

    async def change_network(self, name: str, options: Mapping[str, str], pool: PoolChange | None = None) -> list[Network]:
        """Give network `name` these options in place of what it has, and another range, while it is used; returns it first, then the others
        whose tunnel it shares and that changed with it. NotFound, ConfigError, Conflict."""
        return await self._networks.change(name, options, pool)

    async def remove_network(self, name: str, force: bool = False) -> None:
        await self._networks.remove(name, force)

    async def reserve(
        self,
        network: str,
        owner: str,
        address: IPv4Address | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        mac: str = "",
    ) -> IPv4Interface:
        return await self._addresses.reserve(self._network(network), owner, address, Asker(name, labels or {}, mac=mac))

    async def reserve6(
        self,
        network: str,
        owner: str,
        address: IPv6Address | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        mac: str = "",
    ) -> IPv6Address:
        found = self._network(network)
        if found.subnet6 is not None and not self._carries6(found):
            raise NotSupported(
                "this host carries no IPv6: its kernel has none, or its links have too small an MTU (`plait status` names it)"
            )
        return await self._addresses.reserve6(found, owner, address, Asker(name, labels or {}, mac=mac))

    async def release(self, network: str, address: IPv4Address) -> None:
        await self._addresses.release(network, address)

    def held(self, owner_prefix: str) -> Mapping[tuple[str, IPv4Address], str]:
        kept = (r for r in self._addresses.reservations() if r.live and r.owner.startswith(owner_prefix))
        return {(r.network, r.address): r.owner for r in kept}

    # --- endpoints

    def endpoints(self, runtime: str) -> Mapping[str, Endpoint]:
        own = self._view.snapshot.endpoints.values()
        return {e.id: e for e in own if e.node == self._view.me and e.runtime == runtime}

    async def attach(self, request: AttachRequest) -> Endpoint:
        async with self._lock(request.endpoint):
            network = self._network(request.network)
            permit(network, request, self._kernel.capabilities())
            known = self._find(request.endpoint)
            check_asked(network, request, known)
            check_spoofing(request.labels if known is None else {}, SPOOFING)
            await self._guard(network)
            endpoint = await self._design(request, network, known)
            try:
                async with self._ports_lock if request.ports else contextlib.nullcontext():
                    if request.ports:
                        endpoint = replace(endpoint, ports=await self._assign(endpoint, _besides_told(endpoint, request.ports)))
                    before = self._own()
                    saved = self._journal.queue([Write("endpoint", endpoint.id, encode(endpoint))])
                    self._view.put(endpoint)
                await self._plumbing.put(endpoint, before)
                await self._addresses.saved(endpoint.id)
                await saved
            except (PlaitError, OSError):
                await self._remove(endpoint)
                raise
            await self._names_settled()
            log.info("endpoint_attached", extra=_fields(endpoint))
            return endpoint

    async def detach(self, endpoint: str) -> None:
        async with self._lock(endpoint):
            known = self._find(endpoint)
            if known is not None:
                await self._remove(known)
                log.info("endpoint_detached", extra=_fields(known))
        self._locks.pop(endpoint, None)

    async def _guard(self, network: Network) -> None:
        """The rules for a network that is new here come before its first container."""
        async with self._guard_lock:
            if not guarded(self._kernel.guards, network):
                await self._full_pass()

    async def _design(self, request: AttachRequest, network: Network, known: Endpoint | None) -> Endpoint:
        asker = Asker(request.name, request.labels, request.within, mac_of(network, request))
        wanted = request.address or (known.address if known is not None else None)
        wanted6 = request.address6 or (known.address6 if known is not None else None)
        if wanted is None and wanted6 is not None and network.subnet6 is not None:
            wanted = origin_of(network, wanted6)
        if wanted is not None:
            if known is None:
                self._permit(network, asker, wanted)
            await self._adopt(request, wanted, request.endpoint)
        reserved = await self._addresses.reserve(network, request.endpoint, wanted, asker, later=True)
        try:
            address6 = await self._design6(request, network, reserved.ip, wanted6, known is None)
            await self._addresses.check_free(network, asker.mac, (reserved.ip, address6) if known is None else ())
        except PlaitError:
            if known is None:
                await self._addresses.release_all(network.name, request.endpoint)
            raise
        leased = self._addresses.leased(request.endpoint)
        return endpoint_of(request, network, self._view.me, known, reserved.ip, address6, leased)

    def _permit(self, network: Network, asker: Asker, wanted: IPv4Address) -> None:
        """Conflict if the asker may not have the address, whoever reserved it before its name was known."""
        if reason := self._addresses.assigned.refuse(network, asker)(wanted):
            raise Conflict(reason)

    async def _design6(
        self, request: AttachRequest, network: Network, address: IPv4Address, wanted: IPv6Address | None, new: bool
    ) -> IPv6Address | None:
        """None where there is no IPv6 and none was asked for, and where an engine has the say over what is inside."""
        if network.by_dhcp6:
            return await self._addresses.lease6(network, request, wanted)
        if wanted is None and request.within6:
            wanted = await choose6(self._addresses, request, network, address)
        if not request.ipv6 or (wanted is None and not self._carries6(network)):
            return None
        if wanted is not None and (other := origin(network, wanted)) not in (None, address):
            if new and other is not None:
                self._permit(network, Asker(request.name, request.labels), other)
            await self._adopt(request, other, paired(request.endpoint))
        return await self.reserve6(network.name, request.endpoint, wanted, request.name, request.labels)

    async def _adopt(self, request: AttachRequest, wanted: IPv4Address, owner: str) -> None:
        """An address reserved under another owner id (Docker asks before the endpoint has one) passes to `owner`, of the endpoint."""
        used = any(e.network == request.network and wanted in self._held_by(e) and e.id != request.endpoint for e in self._own())
        if not used:
            await self._addresses.hand_over(request.network, wanted, owner)

    async def _remember(self, endpoint: Endpoint) -> None:
        await self._journal.write([Write("endpoint", endpoint.id, encode(endpoint))])
        self._view.put(endpoint)

    async def _remove(self, endpoint: Endpoint) -> None:
        """Take every trace of the endpoint away. The link's routes go with it; a kernel refusal is retried by the next pass. The disk
        forgets it meanwhile: what the kernel still has after a crash, the first pass removes."""
        before = self._own()
        self._view.drop(endpoint)
        saved = self._journal.queue([Write("endpoint", endpoint.id, None)])
        await self._plumbing.remove(endpoint, before)
        for address in self._held_by(endpoint):
            await self._addresses.release(endpoint.network, address, endpoint.id)
        await saved

    async def amend(self, endpoint: str, change: Callable[[Endpoint], Endpoint]) -> Endpoint | None:
        """Let the endpoint be what `change` makes of it, durably and for names; None if there is none. The kernel is the caller's."""
        async with self._lock(endpoint):
            known = self._find(endpoint)
            if known is not None:
                known = change(known)
                await self._remember(known)
                if self._view.reported(known.runtime):
                    mine = (c for c in self._view.snapshot.containers.values() if c.node == self._view.me and c.runtime == known.runtime)
                    await self.report(known.runtime, list(mine))
            return known

    def _held_by(self, endpoint: Endpoint) -> set[IPv4Address]:
        return held_by(self._view.snapshot.networks.get(endpoint.network), endpoint)

    # --- published ports

    async def publish(self, endpoint: str, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """What its engine wants of it; what was published by command stays."""
        async with self._lock(endpoint):
            known = self._publishing(endpoint)
            published = await self._publish(known, _besides_told(known, ports))
            return tuple(port for port in published.ports if not port.told)

    async def unpublish(self, endpoint: str) -> None:
        """Of what its engine asked for nothing is published any more."""
        async with self._lock(endpoint):
            known = self._find(endpoint)
            if known is not None and known.ports:
                before = self._own()
                await self._remember(replace(known, ports=tuple(port for port in known.ports if port.told)))
                await self._plumbing.ports_changed(before)

    async def change_ports(self, endpoint: str, change: Callable[[Endpoint], Sequence[PortMapping]]) -> tuple[Endpoint, Endpoint]:
        """Let it publish what `change` makes of it, durably and for whoever asks what runs; how it was and how it is. The kernel is the
        caller's. NotFound, NotSupported, PortInUse."""
        async with self._lock(endpoint):
            known = self._publishing(endpoint)
            async with self._ports_lock:
                changed = replace(known, ports=await self._assign(known, change(known)))
                await self._remember(changed)
            mine = [c for c in self._view.snapshot.containers.values() if c.node == self._view.me and c.runtime == known.runtime]
            if self._view.reported(known.runtime):
                await self.report(known.runtime, [_with_ports(container, known, changed) for container in mine])
            return known, changed

    def _publishing(self, endpoint: str) -> Endpoint:
        known = self._find(endpoint)
        if known is None:
            raise NotFound(f"cannot publish ports of endpoint {endpoint}: this node has no such endpoint")
        return known

    async def _publish(self, endpoint: Endpoint, wanted: Sequence[PortMapping]) -> Endpoint:
        async with self._ports_lock:
            ports = await self._assign(endpoint, wanted)
            before = self._own()
            published = replace(endpoint, ports=ports)
            await self._remember(published)
        if ports:
            await self._kernel.put([local_ports(self._network(endpoint.network), endpoint)])
        await self._plumbing.ports_changed(before)
        return published

    async def _assign(self, endpoint: Endpoint, wanted: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """`wanted` with host ports that are free; NotSupported if there can be none. To be called, and its result
        remembered, under the lock of ports."""
        check_ports(self._network(endpoint.network), wanted)
        wanted = labelled(wanted, endpoint.labels)
        candidates: list[int] = []
        if any(not port.host_port for port in wanted):
            candidates = list(ephemeral_range())
            random.shuffle(candidates)
        return await asyncio.to_thread(assign_ports, wanted, endpoint, self._view.snapshot, candidates)

    async def report(self, runtime: str, containers: Sequence[Container]) -> None:
        self._view.report(runtime, [as_leased(container, self._own()) for container in containers])

    # --- what nothing stands behind

    async def recover(self) -> None:
        """Once at start: release reservations that no endpoint stands behind. Docker's are kept until it says what it has."""
        for reservation in self.idle():
            await self._addresses.release(reservation.network, reservation.address)

    def idle(self) -> list[Reservation]:
        """Live reservations without an endpoint; not Docker's, whose collector cares for them."""
        held = {(e.network, address) for e in self._own() for address in self._held_by(e)}
        ours = (r for r in self._addresses.reservations() if r.live and not r.owner.startswith("docker:"))
        return [r for r in ours if (r.network, r.address) not in held]

    async def release_idle(self, reservation: Reservation) -> bool:
        """Release it if it is idle still, now that no attach of its endpoint is under way."""
        async with self._lock(reservation.owner.removesuffix(paired(""))):
            idle = reservation in self.idle()
            if idle:
                await self._addresses.release(reservation.network, reservation.address)
            return idle

    # --- helpers

    def _carries6(self, network: Network) -> bool:
        return carried(self._view.snapshot, network, "ipv6" in self._kernel.capabilities()).subnet6 is not None

    def _own(self) -> list[Endpoint]:
        return [e for e in self._view.snapshot.endpoints.values() if e.node == self._view.me]

    def _find(self, endpoint: str) -> Endpoint | None:
        found = self._view.snapshot.endpoints.get(endpoint)
        return found if found is not None and found.node == self._view.me else None

    def _network(self, name: str) -> Network:
        return network_named(self._view.snapshot.networks, name)

    @contextlib.asynccontextmanager
    async def _lock(self, endpoint: str) -> AsyncIterator[None]:
        async with self._locks.setdefault(endpoint, asyncio.Lock()):
            yield


def _besides_told(endpoint: Endpoint, ports: Sequence[PortMapping]) -> list[PortMapping]:
    """What an engine asks for, and what was published by command."""
    told = [port for port in endpoint.ports if port.told]
    return [*(port for port in ports if not port.told and not any(same_place(port, other) for other in told)), *told]


def _with_ports(container: Container, before: Endpoint, after: Endpoint) -> Container:
    """What its engine told of the container, if the endpoint is its own."""
    if container.id != after.container or container.shares:
        return container
    return replace(container, ports=(*(port for port in container.ports if port not in before.ports), *after.ports))


def _fields(endpoint: Endpoint) -> dict[str, str]:
    return {
        "endpoint": endpoint.id[:16],
        "network": endpoint.network,
        "address": str(endpoint.address),
        "container": endpoint.name,
        "dev": endpoint.dev,
    }
