# SPDX-License-Identifier: Apache-2.0
"""Published ports of a container that leaves by two networks.

Data in: the endpoint that the engine tells to publish, the other ones of its container. Data out: what it publishes, and which others
publish less.

Docker 20.10 has one gateway endpoint a container, 28 one for each family (`--network name=a,gw-priority=1`: the first network with IPv4 and
the first with IPv6), and tells each of the two all ports of the container. Up to 28 it revokes the old gateway before it programs the
new one; since 29 it may program an endpoint again that now leads out one family alone, without revoking and without saying which family
that is. So within a container the family decides that only one of them has, and else the engine's last word. Source: libnetwork's
`endpoint.go` and `drivers/remote/driver.go` of 28.0 and of 29.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address

from plait.model.cluster import Endpoint, PortMapping

_ANYWHERE6 = IPv6Address("::")
Wanted = tuple[PortMapping, int]
"""A port and the last host port that will do too (0: only its own)."""


def shared(endpoint: Endpoint, wanted: Iterable[Wanted], siblings: Iterable[Endpoint]) -> tuple[list[Wanted], dict[str, list[PortMapping]]]:
    """What `endpoint` is to publish of `wanted`, and what `siblings`, by id, are to publish from then on, where that is less than now."""
    wanted = _kept(endpoint, wanted)
    less: dict[str, list[PortMapping]] = {}
    for sibling in siblings:
        mine = [port for port in sibling.ports if not port.told]
        if not mine:
            continue
        if endpoint.address6 is not None and sibling.address6 is None:
            wanted = [(six, last) for port, last in wanted if (six := _only6(port)) is not None]
        else:
            asked = {(port.proto, port.container_port) for port, _ in wanted}
            rest = [port for port in mine if (port.proto, port.container_port) not in asked]
            if endpoint.address6 is None and sibling.address6 is not None:
                moved = (port for port in mine if (port.proto, port.container_port) in asked)
                rest += [six for port in moved if (six := _only6(port)) is not None]
            if rest != mine:
                less[sibling.id] = rest
    return wanted, less


def _kept(endpoint: Endpoint, wanted: Iterable[Wanted]) -> list[Wanted]:
    """What leaves the choice of the host port to plait keeps the one that it has: it may be asked for again while it is published."""
    held: Mapping[tuple[object, ...], int] = {(p.proto, p.container_port, p.host_ip): p.host_port for p in endpoint.ports}
    result: list[Wanted] = []
    for port, last in wanted:
        number = held.get((port.proto, port.container_port, port.host_ip), 0)
        fits = not port.host_port or port.host_port <= number <= last
        result.append((replace(port, host_port=number), 0) if number and fits else (port, last))
    return result


def _only6(port: PortMapping) -> PortMapping | None:
    """Its part that is IPv6's."""
    if port.host_ip.version == 6:
        return port
    return replace(port, host_ip=_ANYWHERE6) if port.host_ip.is_unspecified else None
