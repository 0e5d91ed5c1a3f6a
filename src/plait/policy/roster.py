# SPDX-License-Identifier: Apache-2.0
"""Which workload has which address, from one Snapshot to the next: what `by_address(workloads(snapshot))` says, for what differs.

Endpoints and containers that did not change are known by identity, so that a thousand of them cost the comparison of a thousand pointers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress, islice
from operator import is_, is_not
from typing import Any

from plait.model.addr import IPAddress
from plait.model.cluster import Container, Endpoint, Instance, Snapshot
from plait.policy.workloads import Services, Workload, served, workload_of_endpoint, workloads_of_container

_Rank = tuple[int, Any]
"""Whose an address is that several claim, the least first: workloads by their endpoints, then hosts (which are no workloads), then
containers that nobody attached; each by their keys."""
_ENDPOINT, _HOST, _CONTAINER = 0, 1, 2
_Claims = Iterable[tuple[IPAddress, Workload | None]]


@dataclass(slots=True)
class Roster:
    """`known`: the workloads by address."""

    known: dict[IPAddress, Workload] = field(default_factory=dict)
    _claims: dict[IPAddress, dict[_Rank, Workload | None]] = field(default_factory=dict)
    _made: dict[_Rank, dict[IPAddress, _Rank]] = field(default_factory=dict)
    _endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    _containers: Mapping[tuple[str, str], Container] = field(default_factory=dict)
    _instances: Mapping[tuple[str, str], Instance] = field(default_factory=dict)
    _served: dict[tuple[str, str], tuple[IPAddress, str]] = field(default_factory=dict)
    _services: dict[IPAddress, Counter[str]] = field(default_factory=dict)

    def follow(self, snapshot: Snapshot) -> set[IPAddress]:
        """Be as `snapshot` says; the addresses that have another workload than before, or none any longer."""
        records = self._follow_services(snapshot.instances)
        records |= {(_ENDPOINT, key) for key in differing(self._endpoints, snapshot.endpoints)}
        records |= {(_CONTAINER, place) for place in differing(self._containers, snapshot.containers)}
        self._endpoints, self._containers = snapshot.endpoints, snapshot.containers
        touched: set[IPAddress] = set()
        for record in records:
            touched |= self._replace(record, self._claimed(record))
        return {address for address in touched if self._settle(address)}

    def _follow_services(self, instances: Mapping[tuple[str, str], Instance]) -> set[_Rank]:
        """The records that have an address of which other services have instances than before."""
        touched: set[IPAddress] = set()
        for key in differing(self._instances, instances):
            if (before := self._served.pop(key, None)) is not None:
                self._services[before[0]][before[1]] -= 1
                touched.add(before[0])
            if key in instances and (now := served(instances[key])) is not None:
                self._served[key] = now
                self._services.setdefault(now[0], Counter())[now[1]] += 1
                touched.add(now[0])
        self._instances = instances
        for address in touched:
            self._services[address] = +self._services[address]
        return {rank for address in touched for rank in self._claims.get(address, ()) if rank[0] != _HOST}

    def _claimed(self, record: _Rank) -> _Claims:
        if record[0] == _ENDPOINT:
            return _of_endpoint(self._endpoints.get(record[1]), self._services)
        return _of_container(self._containers.get(record[1]), self._services)

    def _replace(self, record: _Rank, claims: _Claims) -> set[IPAddress]:
        """Take what `record` claims now instead of what it did; all addresses of both."""
        before, now = self._made.pop(record, {}), dict[IPAddress, _Rank]()
        for address, rank in before.items():
            del self._claims[address][rank]
        for address, workload in claims:
            if address not in now:
                now[address] = (_HOST, record[1]) if workload is None else record
                self._claims.setdefault(address, {})[now[address]] = workload
        if now:
            self._made[record] = now
        return {*before, *now}

    def _settle(self, address: IPAddress) -> bool:
        """Whether another workload has it now."""
        claims = self._claims[address]
        if not claims:
            del self._claims[address]
        found = claims[min(claims)] if claims else None
        if found is self.known.get(address):
            return False
        if found is None:
            del self.known[address]
        else:
            self.known[address] = found
        return True


def differing(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[Any]:
    """Keys of records that are not the same ones, in either."""
    if before is now:
        return []
    if len(now) >= len(before) and all(map(is_, before, now)):  # mostly a copy with one record more or another: pointers tell
        return [*compress(now, map(is_not, now.values(), before.values())), *islice(now, len(before), None)]
    found = list(compress(now, map(is_not, now.values(), map(before.get, now))))
    if len(before) + sum(key not in before for key in found) == len(now):  # nothing is gone
        return found
    return found + [key for key in before if key not in now]


def _of_endpoint(endpoint: Endpoint | None, services: Services) -> Iterator[tuple[IPAddress, Workload | None]]:
    if endpoint is not None:
        workload = workload_of_endpoint(endpoint, services)
        yield from ((address, workload) for address in endpoint.present)


def _of_container(container: Container | None, services: Services) -> Iterator[tuple[IPAddress, Workload | None]]:
    for workload in workloads_of_container(container, services) if container is not None else ():
        yield from ((address, workload) for address in workload.addresses)
