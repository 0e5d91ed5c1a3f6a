# SPDX-License-Identifier: Apache-2.0
"""Connections that the kernel tracks, and what becomes of them when what is published changes. Pure.

The kernel decides once, with the first packet, where a connection to a host's port leads (conntrack). A client that goes on sending from
one port of its own, as with UDP, would reach the container of before for ever; so what the present publications would decide otherwise is
forgotten.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from plait.model.addr import IPAddress, IPNetwork, Protocol

Target = tuple[IPAddress, int]
"""Where a port leads to: address and port of a container."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One row: from `source` to `port` of `to`. `led`: where its packets go instead, None if to there. `key` names it to the kernel."""

    proto: Protocol
    source: IPAddress
    to: IPAddress
    port: int
    led: Target | None
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class PortRule:
    """What is published at one port of the host, by one family of addresses, and what was a moment ago. `host`: at this address, None: at
    all but those in `others`, which have something else there. `leads` is None where nothing is published any more. `sources`: who but the
    host itself may come, by each of the lists; () for everybody."""

    proto: Protocol
    port: int
    version: int
    host: IPAddress | None = None
    others: frozenset[IPAddress] = frozenset()
    led: frozenset[Target] = frozenset()
    leads: Target | None = None
    sources: tuple[tuple[IPNetwork, ...], ...] = ()

    def stale(self, flow: Flow, local: Container[IPAddress]) -> bool:
        """Whether the flow would go another way if it began now. `local`: the host's own addresses."""
        if (flow.proto, flow.port, flow.to.version) != (self.proto, self.port, self.version):
            return False
        if not (flow.to in local and flow.to not in self.others if self.host is None else flow.to == self.host):
            return False
        leads = self.leads if flow.source in local or self._lets(flow.source) else None
        if flow.led is None:
            return leads is not None
        return flow.led != leads and flow.led in self.led | {self.leads}

    def _lets(self, source: IPAddress) -> bool:
        return all(any(source in network for network in networks) for networks in self.sources)
