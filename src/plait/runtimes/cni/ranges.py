# SPDX-License-Identifier: Apache-2.0
"""The capability `ipRanges`: which addresses of the network a container may get.

Data in: what the runtime asks for, a list of sets of ranges, one set for each address (conventions of CNI; as host-local's `ranges`). Data
out: ranges of IPv4, those of IPv6 as the IPv4 addresses that they go with (`ipam.dual`), or a `CniError` that names the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from plait.model.addr import AddressRange, IPAddress, IPNetwork
from plait.model.cluster import Network
from plait.runtimes.cni.wire import INVALID, UNSUPPORTED, CniError, IpRange

Ranges = tuple[AddressRange, ...]


@dataclass(frozen=True, slots=True)
class Within:
    """Where an address is to be allocated, and the one that the IPv6 address goes with; () = anywhere. If one address can serve both,
    `address` holds only such. `asked`: what was asked for IPv4 alone."""

    address: Ranges = ()
    address6: Ranges = ()
    asked: Ranges = ()

    def check(self, address: IPv4Address | None, origin6: IPv4Address | None) -> None:
        """CniError if an address that is asked for lies outside. `origin6`: what the IPv6 address goes with, which the container gets too
        unless it asks for another."""
        for one, ranges in ((address or origin6, self.asked), (origin6, self.address6)):
            if one is not None and ranges and not any(one in part for part in ranges):
                parts = ", ".join(map(str, ranges))
                raise CniError(INVALID, f"ips asks for {one}, or for what goes with it, which is not in ipRanges ({parts})")


def wanted_ranges(sets: Sequence[Sequence[IpRange]] | None, network: Network) -> Within:
    """Of all sets; the second one of a family is refused, for a container has one address of each."""
    found: dict[int, Ranges] = {}
    for one in sets or ():
        ends = [_ends(row, network) for row in one]
        families = {first.version for first, _ in ends}
        if len(families) != 1:
            raise CniError(INVALID, "ipRanges: a set holds ranges of one family, at least one")
        family = families.pop()
        if family in found:
            raise CniError(UNSUPPORTED, f"ipRanges: a container has one IPv{family} address of a network, so one set of ranges for it")
        found[family] = tuple(_origins(network, first, last) for first, last in ends)
    four, six = found.get(4, ()), found.get(6, ())
    return Within(_common(four, six) or four or six, six, four)


def _ends(row: IpRange, network: Network) -> tuple[IPAddress, IPAddress]:
    """The first and the last address of a range, both in the network."""
    try:
        subnet = ip_network(row.subnet)
        first = ip_address(row.range_start) if row.range_start else subnet.network_address
        last = ip_address(row.range_end) if row.range_end else subnet.broadcast_address
        gateway = ip_address(row.gateway) if row.gateway else None
    except ValueError as error:
        raise CniError(INVALID, f"ipRanges: {row.subnet!r} is no range of addresses: {error}") from error
    if first.version != subnet.version or last.version != subnet.version or first not in subnet or last not in subnet or first > last:  # type: ignore[operator]
        raise CniError(INVALID, f"ipRanges: {first} to {last} is no part of {subnet}")
    whole, own = _whole(network, subnet)
    if first not in whole or last not in whole:
        raise CniError(INVALID, f"ipRanges: {first} to {last} is no part of network {network.name!r} ({whole})")
    if gateway not in (None, own):
        raise CniError(INVALID, f"ipRanges: the gateway of network {network.name!r} is {own}, not {gateway}")
    return first, last


def _whole(network: Network, like: IPNetwork) -> tuple[IPNetwork, IPAddress | None]:
    """The network's subnet and gateway of the family of `like`."""
    if like.version == 4:
        return network.subnet, network.gateway
    if network.subnet6 is None:
        raise CniError(UNSUPPORTED, f"ipRanges: network {network.name!r} has no IPv6 (`plait network create NAME --ipv6` makes one)")
    return network.subnet6, network.gateway6


def _origins(network: Network, first: IPAddress, last: IPAddress) -> AddressRange:
    """IPv4 as it is; of IPv6 the IPv4 addresses whose images lie from `first` to `last`."""
    if isinstance(first, IPv4Address) and isinstance(last, IPv4Address):
        return AddressRange(first, last)
    assert isinstance(first, IPv6Address) and isinstance(last, IPv6Address) and isinstance(network.subnet6, IPv6Network)
    begin, end = (int(one) - int(network.subnet6.network_address) for one in (first, last))
    if begin >= network.subnet.num_addresses:
        beyond = network.subnet6[network.subnet.num_addresses - 1]
        raise CniError(INVALID, f"ipRanges: containers of network {network.name!r} get no addresses beyond {beyond}, {first} is one")
    return AddressRange(network.subnet[begin], network.subnet[min(end, network.subnet.num_addresses - 1)])


def _common(some: Ranges, others: Ranges) -> Ranges:
    """What lies in both."""
    pairs = ((max(a.first, b.first), min(a.last, b.last)) for a in some for b in others)
    return tuple(AddressRange(first, last) for first, last in pairs if first <= last)
