# SPDX-License-Identifier: Apache-2.0
"""Where the addresses of the cluster are, and how far the nodes -> which addresses DNS names first (`dns.near`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping

from plait.agent.dnssettings import DnsSettings
from plait.dns.options import Options
from plait.model.cluster import Snapshot
from plait.serve.dns_parent import DnsService, DnsUnavailable
from plait.services.queries import Far

EVERY_S = 1.0
_UNITS = 1_000_000
"""Distances are told in microseconds."""


def distances(snapshot: Snapshot, far: Far) -> dict[bytes, int]:
    """Packed address -> microseconds of a round trip to its node; to the nearest one if several say they have it."""
    by_node: dict[str, int] = {}
    found: dict[bytes, int] = {}
    for node, address in _places(snapshot):
        try:
            packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        except OSError:  # a host name
            continue
        if node not in by_node:
            by_node[node] = round(far(node) * _UNITS)
        found[packed] = min(by_node[node], found.get(packed, by_node[node]))
    return found


def _places(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Every node with every address, or host name, that is there."""
    yield from ((name, str(node.address)) for name, node in snapshot.nodes.items())
    yield from ((name, node.address) for name, node in snapshot.catalog_nodes.items())
    yield from ((instance.node, instance.address) for instance in snapshot.instances.values() if instance.address)
    for endpoint in snapshot.endpoints.values():
        yield from ((endpoint.node, str(address)) for address in (endpoint.address, endpoint.address6) if address is not None)
    for container in snapshot.containers.values():
        yield from ((container.node, str(address)) for address in (*container.addresses.values(), *container.addresses6.values()))


class DnsNear:
    """Gives the DNS child its options, and with them, where that is asked for, the distances; those are looked at every second. `far`: how
    far others are from this node, None before this node is known."""

    def __init__(self, dns: DnsService, snapshot: Callable[[], Snapshot], far: Callable[[], Far | None]) -> None:
        self._dns, self._snapshot, self._far = dns, snapshot, far
        self._on, self._options = False, Options()
        self._told: Mapping[bytes, int] | None = None

    async def configure(self, settings: DnsSettings) -> None:
        """Use these from now on. Raises DnsUnavailable."""
        self._on, self._options = settings.near, settings.options
        await self._tell(self._found())

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Tell the child if something is nearer or farther than it knows."""
        found = self._found()
        if found != self._told:
            with contextlib.suppress(DnsUnavailable):  # whoever keeps the names up to date makes that known
                await self._tell(found)

    def _found(self) -> Mapping[bytes, int] | None:
        far = self._far() if self._on else None
        return None if far is None else distances(self._snapshot(), far)

    async def _tell(self, found: Mapping[bytes, int] | None) -> None:
        self._told = found
        await self._dns.set_options(self._options.with_near(found))
