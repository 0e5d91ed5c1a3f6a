# SPDX-License-Identifier: Apache-2.0
"""Which workload has which address, from one Snapshot to the next: what `by_address(workloads(snapshot))` says, for what differs.

Endpoints and containers that did not change are known by identity, so that a thousand of them cost the comparison of a thousand pointers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.model.addr import IPAddress
from plait.model.cluster import Container, Endpoint, Snapshot
from plait.policy.workloads import Workload, workload_of_endpoint, workloads_of_container

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

    def follow(self, snapshot: Snapshot) -> set[IPAddress]:
        """Be as `snapshot` says; the addresses that have another workload than before, or none any longer."""
        touched: set[IPAddress] = set()
        for key in _differing(self._endpoints, snapshot.endpoints):
            touched |= self._replace((_ENDPOINT, key), _of_endpoint(snapshot.endpoints.get(key)))
        for place in _differing(self._containers, snapshot.containers):
            touched |= self._replace((_CONTAINER, place), _of_container(snapshot.containers.get(place)))
        self._endpoints, self._containers = snapshot.endpoints, snapshot.containers
        return {address for address in touched if self._settle(address)}

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


def _differing(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[Any]:
    if before is now:
        return []
    return [key for key, one in now.items() if before.get(key) is not one] + [key for key in before if key not in now]


def _of_endpoint(endpoint: Endpoint | None) -> Iterator[tuple[IPAddress, Workload | None]]:
    if endpoint is not None:
        workload = workload_of_endpoint(endpoint)
        yield from ((address, workload) for address in endpoint.present)


def _of_container(container: Container | None) -> Iterator[tuple[IPAddress, Workload | None]]:
    for workload in workloads_of_container(container) if container is not None else ():
        yield from ((address, workload) for address in workload.addresses)
