# SPDX-License-Identifier: Apache-2.0
"""Who stands behind a service now, and who of them gets new connections. Pure.

Data in: a Snapshot. Data out: backends in order of their address, each with its state, and the table of slots by which the kernel chooses:
a connection draws a slot, so a backend's share is its slots. The order of states is that of what is found first: what somebody said
(draining) comes before what was found out.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Generic, Literal, TypeVar

from plait.model.addr import IPAddress
from plait.model.cluster import Container, Instance, Snapshot
from plait.model.discovery import Check
from plait.model.service import MOST_WEIGHT, WEIGHT_LABEL, Service
from plait.policy.roster import Roster, differing
from plait.policy.workloads import Workload

State = Literal["ready", "draining", "unhealthy", "away"]
"""`away`: its node gives no sign of life."""
MOST_SLOTS = 128
"""So many slots a service has at most, but never fewer than backends; weights are rounded where they come to more."""
AFFINE_SLOTS = 128
"""Slots of a service with affinity, among which the clients' addresses are spread."""
_Key = tuple[str, str]
K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """One attachment of a container that a service's selector finds."""

    address: IPv4Address
    node: str
    name: str
    weight: int = 1
    state: State = "ready"
    address6: IPv6Address | None = None


class _Index(Generic[K, R]):
    """Records by what they are looked up by: `names` tells it, of a record."""

    def __init__(self, names: Callable[[R], Iterable[Hashable]]) -> None:
        self._names = names
        self._seen: Mapping[K, R] = {}
        self._found: dict[Hashable, dict[K, R]] = {}

    def at(self, name: Hashable) -> Mapping[K, R]:
        """By key."""
        return self._found.get(name, {})

    def follow(self, now: Mapping[K, R]) -> set[Any]:
        """Be as this map says; the names at which anything differs."""
        before, self._seen = self._seen, now
        return {name for key in differing(before, now) for name in self.put(key, before.get(key), now.get(key))}

    def put(self, key: K, before: R | None, now: R | None) -> set[Hashable]:
        """Take the one away and have the other instead; the names of both."""
        gone, fresh = (set(self._names(one)) if one is not None else set() for one in (before, now))
        for name in gone:
            found = self._found[name]
            del found[key]
            if not found:
                del self._found[name]
        if now is not None:
            for name in fresh:
                self._found.setdefault(name, {})[key] = now
        return gone | fresh


class Backing:
    """Finds the backends of services, at a cost of those that share one label with the selector, in one Snapshot after another of the same
    node, at a cost of what differs."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = replace(snapshot, alive=frozenset(), services={})
        self._roster, self._workloads = Roster(), dict[IPv4Address, Workload]()
        self._labelled: _Index[IPv4Address, Workload] = _Index(_labels)
        self._called: _Index[IPv4Address, Workload] = _Index(lambda one: [(one.node, called) for called in _names(one)])
        self._containers: _Index[_Key, Container] = _Index(lambda one: [(one.node, one.name)])
        self._registered: _Index[_Key, Instance] = _Index(_places)
        self._bad: _Index[_Key, Check] = _Index(lambda one: [(one.node, one.service_id)] if one.status != "passing" else [])
        self._asking: _Index[_Key, Service] = _Index(_asked_first)
        self.follow(snapshot)

    def follow(self, snapshot: Snapshot) -> set[_Key]:
        """Be as `snapshot` says; the services of which something may be another than before."""
        before, self._snapshot = self._snapshot, snapshot
        services = set(differing(before.services, snapshot.services))
        self._asking.follow(snapshot.services)
        services |= self._follow_workloads(snapshot)
        places, nodes = self._containers.follow(snapshot.containers) | self._registered.follow(snapshot.instances), set(before.alive)
        nodes ^= snapshot.alive
        for place in self._bad.follow(snapshot.checks):
            if (instance := snapshot.instances.get(place)) is not None:
                places |= {*_places(instance)}
            if not place[1]:
                nodes.add(place[0])
        touched = {address: one for place in places for address, one in self._called.at(place).items()}
        if nodes:
            touched |= {address: one for address, one in self._workloads.items() if one.node in nodes}
        return services.union(*map(self._found_by, touched.values()))

    def _follow_workloads(self, snapshot: Snapshot) -> set[_Key]:
        services: set[_Key] = set()
        for address in (one for one in self._roster.follow(snapshot) if isinstance(one, IPv4Address)):
            before, now = self._workloads.pop(address, None), self._roster.known.get(address)
            if now is not None:
                self._workloads[address] = now
            self._labelled.put(address, before, now)
            self._called.put(address, before, now)
            services.update(*(self._found_by(one) for one in (before, now) if one is not None))
        return services

    def _found_by(self, workload: Workload) -> set[_Key]:
        """The services whose selector finds it."""
        asking = (pair for name in _labels(workload) for pair in self._asking.at(name).items())
        return {ident for ident, service in asking if _selects(service, workload)}

    def of(self, service: Service) -> list[Backend]:
        """All of them, whatever their state; none for a selector that asks for nothing."""
        asked = [self._labelled.at((service.network, service.namespace, *pair)) for pair in service.selector.items()]
        least = min(asked, key=len, default={})
        found = ((address, one) for address, one in least.items() if _selects(service, one) and (one.ident or self._runs(one)))
        return sorted(self._backend(service, address, one) for address, one in found)

    def _backend(self, service: Service, address: IPv4Address, workload: Workload) -> Backend:
        registered = {i.id: i for called in _names(workload) for i in self._registered.at((workload.node, called)).values()}
        own = [instance for instance in registered.values() if instance.name == service.name]
        weight = _weight(workload.labels, own, self._warned(own))
        state = self._state(service, workload, registered.values(), weight)
        six = next((one for one in workload.addresses if isinstance(one, IPv6Address)), None)
        return Backend(address, workload.node, workload.name, weight, state, six)

    def _state(self, service: Service, workload: Workload, registered: Iterable[Instance], weight: int) -> State:
        if weight == 0 or f"{workload.node}/{workload.name}" in service.drained:
            return "draining"
        if workload.node != self._snapshot.me and workload.node not in self._snapshot.alive:
            return "away"
        container = self._container(workload)
        sick = container is not None and container.health == "unhealthy"
        ids = ["", *(instance.id for instance in registered)]
        critical = any(check.status == "critical" for ident in ids for check in self._bad.at((workload.node, ident)).values())
        return "unhealthy" if sick or critical or any(instance.down for instance in registered) else "ready"

    def _container(self, workload: Workload) -> Container | None:
        """Of two engines' containers of one name, the last by their ids."""
        found = self._containers.at((workload.node, workload.name))
        return found[max(found)] if found else None

    def _runs(self, workload: Workload) -> bool:
        """Of one on Docker's own bridge, which no endpoint of ours stands for."""
        container = self._container(workload)
        return container is not None and container.state == "running"

    def _warned(self, instances: Iterable[Instance]) -> bool:
        return any(self._bad.at((instance.node, instance.id)) for instance in instances)


def _labels(workload: Workload) -> list[tuple[str, str, str, str]]:
    return [(workload.network, workload.namespace, *pair) for pair in workload.labels.items()]


def _names(workload: Workload) -> tuple[str, ...]:
    """What it may be registered as, on its node."""
    return (workload.name, *map(str, workload.addresses))


def _places(instance: Instance) -> set[_Key]:
    return {(instance.node, called) for called in {instance.container, instance.address} - {""}}


def _asked_first(service: Service) -> list[tuple[str, str, str, str]]:
    """One of the labels that its containers have, in the form of `_labels`."""
    return [(service.network, service.namespace, *min(service.selector.items()))] if service.selector else []


def _selects(service: Service, workload: Workload) -> bool:
    """Of one that has the network, the namespace and one label of it."""
    return all(workload.labels.get(key) == value for key, value in service.selector.items())


def _weight(labels: Mapping[str, str], registered: Sequence[Instance], warned: bool) -> int:
    """What its label says, else what it was registered with under the name of the service. A label that is no weight is none."""
    text = labels.get(WEIGHT_LABEL, "")
    if text.isascii() and text.isdigit():
        return min(int(text), MOST_WEIGHT)
    found = [one.weight_warning if warned else one.weight_passing for one in registered]
    return min(max(max(found, default=1), 0), MOST_WEIGHT)


def headless(snapshot: Snapshot) -> dict[tuple[str, str], tuple[IPAddress, ...]]:
    """By service without a virtual address, the addresses of those who are ready."""
    wanted = [service for service in snapshot.services.values() if service.address is None]
    backing = Backing(snapshot) if wanted else None
    return {one.ident: tuple(_addresses(backing.of(one))) for one in wanted} if backing is not None else {}


def _addresses(backends: Iterable[Backend]) -> Iterator[IPAddress]:
    return (address for one in backends if one.state == "ready" for address in (one.address, one.address6) if address is not None)


def chosen(service: Service, backends: Iterable[Backend], me: str) -> list[Backend]:
    """Those that new connections on the node `me` are spread over."""
    ready = [backend for backend in backends if backend.state == "ready"]
    local = [backend for backend in ready if backend.node == me] if service.local_first else []
    return local or ready


def slots(service: Service, backends: Sequence[Backend]) -> tuple[IPv4Address, ...]:
    """Whom each slot leads to, () if there is nobody. Deterministic, the same on every host for the same backends."""
    weights = tuple((backend.address, backend.weight) for backend in backends)
    return _by_client(weights) if service.affinity and weights else _by_chance(weights)


@functools.lru_cache(1 << 14)
def _by_chance(weights: tuple[tuple[IPv4Address, int], ...]) -> tuple[IPv4Address, ...]:
    """As many slots as weights, in lowest terms."""
    total = sum(weight for _, weight in weights)
    if total > MOST_SLOTS:
        most = max(MOST_SLOTS, len(weights))
        weights = tuple((address, max(1, weight * most // total)) for address, weight in weights)
    unit = math.gcd(*(weight for _, weight in weights)) if weights else 1
    return tuple(address for address, weight in weights for _ in range(weight // unit))


@functools.lru_cache(1 << 14)
def _by_client(weights: tuple[tuple[IPv4Address, int], ...]) -> tuple[IPv4Address, ...]:
    """A slot is the backend's that bids the most for it (weighted rendezvous hashing: Schindelhauer and Schomaker, 2005), so that one which
    comes or goes moves no other's clients."""
    return tuple(min(weights, key=lambda one: (_bid(one[0], slot) / one[1], one[0]))[0] for slot in range(AFFINE_SLOTS))


def _bid(address: IPv4Address, slot: int) -> float:
    """Exponentially distributed, the lowest wins: by address and slot alone."""
    digest = hashlib.blake2s(address.packed + slot.to_bytes(2, "big"), digest_size=8).digest()
    return -math.log((int.from_bytes(digest, "big") + 1) / (2.0**64 + 1))
