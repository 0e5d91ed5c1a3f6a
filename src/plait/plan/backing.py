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
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from plait.model.cluster import Instance, Snapshot
from plait.model.discovery import Check
from plait.model.service import MOST_WEIGHT, WEIGHT_LABEL, Service
from plait.policy.workloads import Workload, workloads

State = Literal["ready", "draining", "unhealthy", "away"]
"""`away`: its node gives no sign of life."""
MOST_SLOTS = 128
"""So many slots a service has at most, but never fewer than backends; weights are rounded where they come to more."""
AFFINE_SLOTS = 128
"""Slots of a service with affinity, among which the clients' addresses are spread."""
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """One attachment of a container that a service's selector finds."""

    address: IPv4Address
    node: str
    name: str
    weight: int = 1
    state: State = "ready"


class Backing:
    """Finds the backends of services, at a cost of those that share one label with the selector."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._labelled: defaultdict[tuple[str, str, str, str], list[Workload]] = defaultdict(list)
        if not snapshot.services:
            return
        self._containers = {(c.node, c.name): c for c in snapshot.containers.values()}
        for workload in workloads(snapshot):
            if workload.ident or self._runs(workload):
                for key, value in workload.labels.items():
                    self._labelled[workload.network, workload.namespace, key, value].append(workload)
        self._registered: defaultdict[_Key, list[Instance]] = defaultdict(list)
        for instance in snapshot.instances.values():
            for called in {instance.container, instance.address} - {""}:
                self._registered[instance.node, called].append(instance)
        self._bad: defaultdict[_Key, list[Check]] = defaultdict(list)
        for check in snapshot.checks.values():
            if check.status != "passing":
                self._bad[check.node, check.service_id].append(check)

    def of(self, service: Service) -> list[Backend]:
        """All of them, whatever their state; none for a selector that asks for nothing."""
        asked = [self._labelled.get((service.network, service.namespace, *pair), []) for pair in service.selector.items()]
        least = min(asked, key=len, default=[])
        found = [one for one in least if all(one.labels.get(key) == value for key, value in service.selector.items())]
        return sorted(backend for one in found for backend in self._backends(service, one))

    def _backends(self, service: Service, workload: Workload) -> Iterable[Backend]:
        registered = {i.id: i for called in (workload.name, *map(str, workload.addresses)) for i in self._registered[workload.node, called]}
        own = [instance for instance in registered.values() if instance.name == service.name]
        weight = _weight(workload.labels, own, self._warned(own))
        state = self._state(service, workload, registered.values(), weight)
        return (
            Backend(address, workload.node, workload.name, weight, state)
            for address in workload.addresses
            if isinstance(address, IPv4Address)
        )

    def _state(self, service: Service, workload: Workload, registered: Iterable[Instance], weight: int) -> State:
        if weight == 0 or f"{workload.node}/{workload.name}" in service.drained:
            return "draining"
        if workload.node != self._snapshot.me and workload.node not in self._snapshot.alive:
            return "away"
        container = self._containers.get((workload.node, workload.name))
        sick = container is not None and container.health == "unhealthy"
        ids = ["", *(instance.id for instance in registered)]
        critical = any(check.status == "critical" for ident in ids for check in self._bad.get((workload.node, ident), ()))
        return "unhealthy" if sick or critical or any(instance.down for instance in registered) else "ready"

    def _runs(self, workload: Workload) -> bool:
        """Of one on Docker's own bridge, which no endpoint of ours stands for."""
        container = self._containers.get((workload.node, workload.name))
        return container is not None and container.state == "running"

    def _warned(self, instances: Iterable[Instance]) -> bool:
        return any(self._bad.get((instance.node, instance.id)) for instance in instances)


def _weight(labels: Mapping[str, str], registered: Sequence[Instance], warned: bool) -> int:
    """What its label says, else what it was registered with under the name of the service. A label that is no weight is none."""
    text = labels.get(WEIGHT_LABEL, "")
    if text.isascii() and text.isdigit():
        return min(int(text), MOST_WEIGHT)
    found = [one.weight_warning if warned else one.weight_passing for one in registered]
    return min(max(max(found, default=1), 0), MOST_WEIGHT)


def headless(snapshot: Snapshot) -> dict[tuple[str, str], tuple[IPv4Address, ...]]:
    """By service without a virtual address, those who are ready, by address."""
    wanted = [service for service in snapshot.services.values() if service.address is None]
    backing = Backing(snapshot) if wanted else None
    return {one.ident: tuple(b.address for b in backing.of(one) if b.state == "ready") for one in wanted} if backing is not None else {}


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
