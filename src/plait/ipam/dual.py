# SPDX-License-Identifier: Apache-2.0
"""IPv6 of a network as the image of its IPv4: the offset in the subnet is the offset in `subnet6`.

So there is one mechanism: who leases a block leases its image, who has an address has its image, and both families cannot disagree. The
image of an address ends in the bytes of its offset (10.29.4.7 in 10.29.0.0/16 becomes …::407 in a /64); what of `subnet6` lies beyond the
last image is nobody's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from plait.model.addr import AddressRange
from plait.model.cluster import Endpoint, Network
from plait.model.errors import ConfigError
from plait.model.service import VIP_POOL6

PREFIX6 = 64
"""Of a subnet that nobody named. A named one is as large or larger: what is smaller holds neither every pool nor what engines expect."""
_UNICAST = (IPv6Network("fc00::/7"), IPv6Network("2000::/3"))
"""Unique local and global unicast (RFC 4193, RFC 4291 section 2.4)."""
_BITS4, _BITS6 = 32, 128


def image(network: Network, address: IPv4Address) -> IPv6Address | None:
    """The IPv6 address that goes with `address` of the network's subnet; None if the network has no IPv6, or a server gives it."""
    if network.subnet6 is None or network.by_dhcp6:
        return None
    return network.subnet6.network_address + (int(address) - int(network.subnet.network_address))


def image_block(network: Network, block: IPv4Network) -> IPv6Network | None:
    """The IPv6 block that goes with a part of the subnet: the images of all its addresses and no others."""
    first = image(network, block.network_address)
    return None if first is None else IPv6Network((first, _BITS6 - _BITS4 + block.prefixlen))


def origin(network: Network, address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address whose image `address` is; None if there is none."""
    return None if network.by_dhcp6 else origin_in(network.subnet, network.subnet6, address)


def origin_in(subnet: IPv4Network, subnet6: IPv6Network | None, address: IPv6Address) -> IPv4Address | None:
    """The same for a network that is yet to be made."""
    if subnet6 is None or address not in subnet6:
        return None
    offset = int(address) - int(subnet6.network_address)
    return subnet[offset] if offset < subnet.num_addresses else None


def held_by(network: Network | None, endpoint: Endpoint) -> set[IPv4Address]:
    """What is reserved for an endpoint of the network: its address, and the one with which its IPv6 address goes, which may be another."""
    of = origin(network, endpoint.address6) if network is not None and endpoint.address6 is not None else None
    return {endpoint.address, of or endpoint.address}


def origin_of(network: Network, address: IPv6Address) -> IPv4Address:
    """The IPv4 address with which `address` goes, and so is held. ConfigError if there is none."""
    found = origin(network, address)
    if found is None:
        first, last = image(network, network.subnet[0]), image(network, network.subnet[-1])
        raise ConfigError(
            "IPv6 address", str(address), f"is none that network {network.name!r} gives", f"ask for one from {first} to {last}"
        )
    return found


def without_router(network: Network) -> Network:
    """The network without the IPv4 address that goes with its router's IPv6 address, which may be any on a link of the hosts; others are
    returned as they are."""
    same = origin(network, network.gateway6) if network.router and network.gateway6 is not None else None
    if same in (None, network.gateway) or any(same in part for part in network.excluded):
        return network
    return replace(network, excluded=(*network.excluded, AddressRange(same, same)))


def default_subnet6(random_bits: int) -> IPv6Network:
    """The first /64 of a unique local prefix (RFC 4193) with 40 bits that the caller has drawn at random."""
    return IPv6Network(((0xFD << 120) | (random_bits & ((1 << 40) - 1)) << 80, PREFIX6))


def check_network6(network: Network, others: Collection[Network]) -> None:
    """Raise ConfigError unless the network's IPv6, if it has any, is sound and overlaps none of `others`."""
    subnet = network.subnet6
    if subnet is None:
        return
    if subnet.prefixlen > PREFIX6:
        raise ConfigError("IPv6 subnet", str(subnet), "is too small for a network", f"use a prefix length of {PREFIX6} or less")
    if not any(subnet.subnet_of(part) for part in _UNICAST):
        raise ConfigError("IPv6 subnet", str(subnet), "is no unicast range", "use a part of fd00::/8, or of a range that is routed to you")
    if subnet.overlaps(VIP_POOL6):
        raise ConfigError("IPv6 subnet", str(subnet), f"overlaps {VIP_POOL6} (virtual addresses of services)", "choose another range")
    for other in others:
        if other.name != network.name and other.subnet6 is not None and other.subnet6.overlaps(subnet):
            raise ConfigError("IPv6 subnet", str(subnet), f"overlaps {other.subnet6} of network {other.name!r}", "choose another range")
    if network.gateway6 is not None:
        _check_gateway6(network, subnet, network.gateway6)


def _check_gateway6(network: Network, subnet: IPv6Network, gateway: IPv6Address) -> None:
    near = gateway.is_link_local and gateway.scope_id is None and network.router
    if not near and (gateway not in subnet or gateway == subnet.network_address):
        raise ConfigError("IPv6 gateway", str(gateway), f"is not a host address of {subnet}")
    same = origin(network, gateway)
    if same is not None and same != network.gateway and not any(same in part for part in network.excluded):
        hint = f"use {image(network, network.gateway)}, or one beyond {image(network, network.subnet.broadcast_address)}"
        raise ConfigError("IPv6 gateway", str(gateway), f"goes with {same}, which a container may get", hint)
