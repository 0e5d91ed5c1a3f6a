# SPDX-License-Identifier: Apache-2.0
"""The address that a host has leased for a network (`-o lease=eth1`): all of its containers on that host share it towards the link.

In: which networks have one here. Out: the address, on the link that carries the host's own (the kernel answers ARP for it on whatever link
asks, ip-sysctl: arp_ignore 0), and one rule each that what leaves by that link is said from it. It comes before the rule that translates to
the link's own address; the first translation of a connection counts (nf_nat). Ports that containers publish are reached by it as by every
address of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from plait.model.cluster import Network
from plait.model.objects import GATEWAY_LINK, Addr, KernelObject, NftChain


@dataclass(frozen=True, slots=True)
class HostLease:
    """An address of the link `link` of this host."""

    link: str
    address: IPv4Address


def host_lease_objects(networks: Iterable[Network], leases: Mapping[str, HostLease]) -> list[KernelObject]:
    """`leases` by network."""
    having = [(network, leases[network.name]) for network in networks if network.name in leases]
    if not having:
        return []
    rules = tuple(
        f'ip saddr {network.subnet} ip daddr != @pools oifname "{lease.link}" snat ip to {lease.address}' for network, lease in having
    )
    return [
        *(Addr(GATEWAY_LINK, IPv4Interface((lease.address, 32))) for _, lease in having),
        NftChain("leased", rules, "type nat hook postrouting priority srcnat - 5; policy accept;"),
    ]
