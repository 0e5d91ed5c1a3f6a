# SPDX-License-Identifier: Apache-2.0
"""What else uses addresses of a pool: routes and addresses of hosts, networks of their engines, virtual addresses of services.

Every node publishes its own (`HostRanges`); a network is refused where they overlap, and one that is there already is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network

from plait.model.addr import IPNetwork
from plait.model.cluster import HostRange, Network, Snapshot
from plait.model.errors import ConfigError
from plait.model.service import VIP_POOL, VIP_POOL6

MOST = 64
"""Ranges that a node publishes."""
WIDEST = 4
"""Prefix length; a route that is wider is a default route in parts (0.0.0.0/1 of a VPN) and stands for no network."""
FORCED = "plait.force"
"""Option of a network that was made although something else uses its addresses."""


def own_ranges(found: Iterable[HostRange], bridge: IPv4Network | None) -> tuple[HostRange, ...]:
    """What a node publishes of what it found: without what lies in its block for Docker's default bridge (`bridge`), without what a wider
    one of the same kind of entry covers, the widest first, at most `MOST`."""
    kept: list[HostRange] = []
    for one in sorted(found, key=lambda r: (r.cidr.prefixlen, r.cidr, r.what)):
        cidr = one.cidr
        plain = cidr.prefixlen >= WIDEST and not (cidr.is_loopback or cidr.is_multicast)
        if plain and not (bridge is not None and cidr.subnet_of(bridge)) and not any(cidr.subnet_of(wider.cidr) for wider in kept):
            kept.append(one)
            if len(kept) == MOST:
                break
    return tuple(kept)


def overlapping(subnet: IPv4Network, snapshot: Snapshot) -> Iterator[str]:
    """What overlaps the subnet, by host: "route 10.30.0.0/16 dev eth1 on node B"."""
    for name in sorted(snapshot.host_ranges):
        for one in snapshot.host_ranges[name].ranges:
            if one.cidr.overlaps(subnet):
                yield f"{one.cidr} ({one.what} on node {name})"
    yield from _over_vips(subnet, snapshot)


def _over_vips(subnet: IPNetwork | None, snapshot: Snapshot) -> Iterator[str]:
    for pool in (VIP_POOL, VIP_POOL6) if snapshot.services else ():
        if subnet is not None and pool.version == subnet.version and pool.overlaps(subnet):
            yield f"{pool} (virtual addresses of services)"


def check_overlaps(subnet: IPv4Network, snapshot: Snapshot) -> None:
    """ConfigError that names what overlaps the subnet."""
    found = list(overlapping(subnet, snapshot))
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConfigError(
            "subnet",
            str(subnet),
            f"overlaps {', '.join(found[:3])}{more}",
            "choose another range, or use --force (Docker: -o plait.force=true)",
        )


def clashes(snapshot: Snapshot) -> dict[str, str]:
    """Networks by name whose addresses something else uses, with what to say of each; not those that were made so on purpose."""
    networks = [network for network in snapshot.networks.values() if not is_forced(network)]
    found = {n.name: [*overlapping(n.subnet, snapshot), *_over_vips(n.subnet6, snapshot)] for n in networks}
    return {name: f"network {name} overlaps {', '.join(texts)}" for name, texts in found.items() if texts}


def is_forced(network: Network) -> bool:
    return network.options.get(FORCED) == "true"


def taken(snapshot: Snapshot) -> list[IPv4Network]:
    """What a pool that is chosen by itself keeps clear of."""
    ranges = (r.cidr for h in snapshot.host_ranges.values() for r in h.ranges)
    return [*(n.subnet for n in snapshot.networks.values()), *ranges, VIP_POOL]
