# SPDX-License-Identifier: Apache-2.0
"""`plait service`, and services that containers' labels ask for: records in the store, and who stands behind them.

Data in: requests, the own containers' labels. Data out: records below `services/` and `vips/`, both of a service in one transaction, so
that no virtual address is anybody else's; rows. It answers once what was said is in force on this host; the others follow as their replicas
do.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from plait.agent.health import Health
from plait.agent.kernelwork import PassReport
from plait.agent.keys import service_key, vip_key
from plait.agent.named import the_one
from plait.agent.view import View
from plait.backends import child_of
from plait.model.cluster import Snapshot
from plait.model.errors import ConfigError, Conflict, NotFound, PlaitError, PoolExhausted, StoreUnavailable
from plait.model.service import (
    SERVICE_LABEL,
    SERVICE_PORTS_LABEL,
    VIP_POOL,
    Service,
    ServiceChange,
    ServicePort,
    ServiceRequest,
    parse_service_name,
    parse_service_ports,
)
from plait.model.servicereport import BackendRow, ServiceRow, ServiceView
from plait.plan.backing import Backend, Backing
from plait.policy.workloads import Workload, workloads
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.services")
_TRIES = 16
_AGAIN_S = 5.0
_REFUSED = "service-label-refused"


class Services:
    """`full_pass` makes the kernel what the view says. `run` never returns."""

    def __init__(
        self,
        view: View,
        store: Store,
        health: Health,
        caught_up: Callable[[int], Awaitable[None]],
        full_pass: Callable[[], Awaitable[PassReport]],
    ) -> None:
        self._view, self._store, self._health, self._caught_up, self._full_pass = view, store, health, caught_up, full_pass
        self._labelled = asyncio.Event()
        view.subscribe(self._on_view)

    async def create(self, request: ServiceRequest) -> ServiceView:
        """ConfigError, NotFound, Conflict, PoolExhausted; KernelError if this host's kernel refuses it, which is tried again."""
        service = await self._make(request)
        await self._enforce()
        return self.show("/".join(service.ident))

    async def change(self, name: str, change: ServiceChange) -> ServiceView:
        """NotFound, ConfigError, Conflict."""
        for _ in range(_TRIES):
            known = self._named(name)
            wanted = self._changed(known, change)
            item = self._view.item(service_key(known.ident))
            if wanted == known or item is None:
                break
            self._check(wanted)
            result = await self._store.txn([Compare(item.key, item.mod_revision)], [Put(item.key, encode(wanted))])
            await self._caught_up(result.revision)
            if result.ok:
                log.info("service_changed", extra={"service": "/".join(known.ident)})
                await self._enforce()
                break
        else:
            raise Conflict(f"service {name!r} could not be changed: it is being changed at the same time; try again")
        return self.show("/".join(known.ident))

    async def remove(self, name: str) -> None:
        """Its address is free then, and connections by it end. NotFound, Conflict if several have the name."""
        service = self._named(name)
        result = await self._store.txn([], [Delete(key) for key in _keys(service)])
        await self._caught_up(result.revision)
        log.info("service_removed", extra={"service": "/".join(service.ident)})
        await self._enforce()

    def rows(self) -> list[ServiceRow]:
        snapshot = self._view.snapshot
        backing = Backing(snapshot)
        return [_row(service, snapshot, backing.of(service)) for _, service in sorted(snapshot.services.items())]

    def show(self, name: str) -> ServiceView:
        """`NAMESPACE/NAME`, or `NAME` where only one is called so. NotFound, Conflict."""
        service = self._named(name)
        found = Backing(self._view.snapshot).of(service)
        return {
            **_row(service, self._view.snapshot, found),
            "dns": f"{service.name}.{service.namespace}.svc.cluster.local",
            "selector": dict(service.selector),
            "affinity": service.affinity,
            "local_first": service.local_first,
            "hosts": list(service.hosts),
            "containers": [
                BackendRow(
                    node=one.node,
                    name=one.name,
                    address=str(one.address),
                    address6=str(one.address6 or ""),
                    weight=one.weight,
                    state=one.state,
                )
                for one in found
            ],
        }

    # --- records

    async def _make(self, request: ServiceRequest) -> Service:
        parse_service_name(request.name)
        parse_service_name(request.namespace, "namespace")
        if not request.selector:
            raise ConfigError("selector", "", "is missing", "say which containers it is made of, as KEY=VALUE")
        if request.headless and (request.address or request.affinity or request.local_first or any(p.published for p in request.ports)):
            raise ConfigError("headless", True, "leaves the choice to the client", "leave out address, affinity, local_first and publish")
        self._check_network(request.network)
        for _ in range(_TRIES):
            snapshot = self._view.snapshot
            if (request.namespace, request.name) in snapshot.services:
                raise Conflict(f"there is a service {request.namespace}/{request.name} already; `plait service set` changes it")
            service = Service(
                request.name,
                request.namespace,
                None if request.headless else _free(snapshot, request),
                request.ports,
                request.selector,
                request.network,
                request.affinity,
                request.local_first,
                hosts=request.hosts,
            )
            self._check(service)
            values = encode(service), "/".join(service.ident).encode()
            puts = [Put(key, value) for key, value in zip(_keys(service), values, strict=False)]
            result = await self._store.txn([Compare(put.key, 0) for put in puts], puts)
            await self._caught_up(result.revision)
            if result.ok:
                log.info("service_created", extra={"service": "/".join(service.ident), "address": _address(service)})
                return service
        raise Conflict(f"service {request.name!r} could not be made: others are being made at the same time; try again")

    def _check_network(self, name: str) -> None:
        network = self._view.snapshot.networks.get(name)
        if network is None:
            raise NotFound(f"there is no network {name!r}; `plait network ls` lists them")
        if child_of(network) is not None:
            raise ConfigError("network", name, "lies on a link of the hosts, whose packets these do not see", "use one of another backend")

    def _check(self, service: Service) -> None:
        """That no port of hosts is somebody else's already. Conflict."""
        wanted = {(port.proto, port.published) for port in service.ports if port.published}
        for place, holder in _published(self._view.snapshot):
            if place in wanted and holder != "service " + "/".join(service.ident):
                raise Conflict(f"port {place[1]}/{place[0]} of the hosts is published by {holder}; choose another one")

    def _changed(self, known: Service, change: ServiceChange) -> Service:
        said = {"ports": change.ports, "selector": change.selector, "affinity": change.affinity, "local_first": change.local_first}
        drained = {*known.drained, *self._containers(known, change.drain)} - {*self._containers(known, change.undrain, gone=True)}
        fields = {key: value for key, value in said.items() if value is not None}
        return replace(known, drained=tuple(sorted(drained)), **fields)  # type: ignore[arg-type]

    def _containers(self, service: Service, names: Iterable[str], gone: bool = False) -> Iterator[str]:
        """What each names, NODE/NAME; one that drains may be `gone`. NotFound."""
        known = {f"{one.node}/{one.name}" for one in Backing(self._view.snapshot).of(service)} | (set(service.drained) if gone else set())
        for name in names:
            found = sorted(one for one in known if name in (one, one.partition("/")[2]))
            if not found:
                raise NotFound(f"service {'/'.join(service.ident)} has no container {name!r}: it has {', '.join(sorted(known)) or 'none'}")
            yield from found

    def _named(self, name: str) -> Service:
        return the_one(self._view.snapshot.services, name, "service", "services")

    async def _enforce(self) -> None:
        for key, error in (await self._full_pass()).failed.items():
            if key[0] in ("pass", "nft"):
                raise error

    # --- by labels

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & {"endpoints", "containers", "services"}:
            self._labelled.set()

    async def run(self) -> None:
        """Make the services that this host's containers name and that are not there. Never returns."""
        while True:
            self._labelled.clear()
            waits = await self._make_labelled()
            try:
                async with asyncio.timeout(_AGAIN_S if waits else None):
                    await self._labelled.wait()
            except TimeoutError:
                pass

    async def _make_labelled(self) -> bool:
        """Whether some could not be made although they may be later."""
        refused: dict[str, str] = {}
        waits = False
        for workload in _missing(self._view.snapshot):
            try:
                await self._make(_asked_by(workload))
            except StoreUnavailable:
                waits = True
            except PlaitError as error:
                refused[workload.name] = f"container {workload.name}: {error}"
                waits = True
        self._health.replace(_REFUSED, refused)
        return waits


def _missing(snapshot: Snapshot) -> list[Workload]:
    """This node's containers whose label names a service that is not there, one for each."""
    labels = [one.labels for one in snapshot.endpoints.values()] + [one.labels for one in snapshot.containers.values()]
    if not any(SERVICE_LABEL in one for one in labels):
        return []
    own = [one for one in workloads(snapshot) if one.node == snapshot.me and SERVICE_LABEL in one.labels]
    return list({ident: one for one in own if (ident := (one.namespace, one.labels[SERVICE_LABEL])) not in snapshot.services}.values())


def _asked_by(workload: Workload) -> ServiceRequest:
    """ConfigError for labels that cannot be meant."""
    name = workload.labels[SERVICE_LABEL]
    texts = [text.strip() for text in workload.labels.get(SERVICE_PORTS_LABEL, "").split(",")]
    if texts == [""]:
        raise ConfigError(f"label {SERVICE_PORTS_LABEL}", "", "is missing", "say which ports the service has, as 80:8080,53/udp")
    return ServiceRequest(name, parse_service_ports(texts), {SERVICE_LABEL: name}, workload.namespace, workload.network)


def _free(snapshot: Snapshot, request: ServiceRequest) -> IPv4Address:
    """What was asked for, else the first free address from one that its name leads to, so that the same service gets the same again. None
    is free that a network or a host uses. Conflict, ConfigError, PoolExhausted."""
    taken = {one.address: one for one in snapshot.services.values() if one.address is not None}
    used = [network.subnet for network in snapshot.networks.values()]
    used += [one.cidr for ranges in snapshot.host_ranges.values() for one in ranges.ranges]
    used = [one for one in used if one.overlaps(VIP_POOL)]
    if request.address is not None:
        if request.address not in VIP_POOL:
            raise ConfigError("address", str(request.address), f"is not in {VIP_POOL}, where virtual addresses are")
        if request.address in taken:
            raise Conflict(f"address {request.address} is that of service {'/'.join(taken[request.address].ident)}")
        if holder := next((one for one in used if request.address in one), None):
            raise Conflict(f"address {request.address} lies in {holder}, which a network or a host of the cluster uses")
        return request.address
    size = VIP_POOL.num_addresses - 2
    begin = int.from_bytes(hashlib.sha256(f"{request.namespace}/{request.name}".encode()).digest()[:4], "big")
    for step in range(size):
        address = VIP_POOL[1 + (begin + step) % size]
        if address not in taken and not any(address in one for one in used):
            return address
    raise PoolExhausted(f"no virtual address is left of {VIP_POOL}: {len(taken)} services have {size}; remove one")


def _keys(service: Service) -> list[str]:
    """Of its record, and of its address if it has one."""
    return [service_key(service.ident), *([vip_key(service.address)] if service.address is not None else [])]


def _address(service: Service) -> str:
    return str(service.address or "")


def _published(snapshot: Snapshot) -> Iterator[tuple[tuple[str, int], str]]:
    """Ports of hosts that lead elsewhere, with who says so."""
    for service in snapshot.services.values():
        yield from (((port.proto, port.published), "service " + "/".join(service.ident)) for port in service.ports if port.published)
    for endpoint in snapshot.endpoints.values():
        holder = f"container {endpoint.name or endpoint.id} on {endpoint.node}"
        yield from (((port.proto, port.host_port), holder) for port in endpoint.ports)


def _row(service: Service, snapshot: Snapshot, backends: Iterable[Backend]) -> ServiceRow:
    known, network = list(backends), snapshot.networks.get(service.network)
    return ServiceRow(
        namespace=service.namespace,
        name=service.name,
        address=_address(service),
        address6=str(service.address6(network) or ""),
        network=service.network,
        ports=[str(port) for port in service.ports],
        published=[_outside(port) for port in service.ports if port.published],
        ready=sum(one.state == "ready" for one in known),
        backends=len(known),
    )


def _outside(port: ServicePort) -> str:
    return f"{port.published}:{port.port}/{port.proto}"
