# SPDX-License-Identifier: Apache-2.0
"""The two families of addresses in a plan. IPv4 is always there; IPv6 as soon as one network has it, and then nothing of it is left out.

Both are treated alike but for how a container finds its gateway. ARP has a proxy that answers for everybody, neighbour discovery has none.
So an endpoint's IPv6 address stands alone on its link (/128), and the gateway is the one neighbour that it has: that address lies on the
host's side of every endpoint's link (on a bridge, where neighbours answer for themselves, on that, and the subnet is on link). The way back
is a permanent neighbour entry, the MAC being the endpoint's own. Neither side ever waits for a search for duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, NamedTuple

from plait.backends import backend_of, on_link
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Endpoint, Network, Node
from plait.model.inside import Inside6
from plait.model.objects import Addr, KernelObject, Neigh, Route, Sysctl
from plait.model.service import VIP_POOL, VIP_POOL6, Service

if TYPE_CHECKING:
    from plait.plan.backing import Backend

FORWARDING = Sysctl("ipv6/conf/all/forwarding", "1")


class Family(NamedTuple):
    """How nft spells a family: its word, the type of its addresses, and what the names of its sets and maps end in. `anywhere`: every
    address of a host."""

    ip: str
    type: str
    end: str
    anywhere: IPAddress

    @property
    def error(self) -> str:
        """The protocol of its errors."""
        return "icmp" if self is V4 else "icmpv6"

    @property
    def vips(self) -> IPNetwork:
        """Where virtual addresses of services are."""
        return VIP_POOL if self is V4 else VIP_POOL6

    def vip(self, service: Service, network: Network | None) -> IPAddress | None:
        """The virtual address of a service on that network."""
        return service.address if self is V4 else service.address6(network)

    def subnet(self, network: Network) -> IPNetwork | None:
        return network.subnet if self is V4 else network.subnet6

    def gateway(self, network: Network) -> IPAddress | None:
        return network.gateway if self is V4 else network.gateway6

    def address(self, endpoint: Endpoint | Backend) -> IPAddress | None:
        return endpoint.address if self is V4 else endpoint.address6

    def tunnel(self, node: Node) -> IPAddress | None:
        return node.tunnel if self is V4 else node.tunnel6

    def encrypted(self, node: Node) -> IPAddress | None:
        """The host's own address in encrypted networks."""
        if node.wireguard is None:
            return None
        return node.wireguard.address if self is V4 else node.encrypted6

    def subnets(self, networks: Iterable[Network]) -> list[IPNetwork]:
        """Of those networks that have the family, in their order."""
        return [subnet for network in networks if (subnet := self.subnet(network)) is not None]


V4 = Family("ip", "ipv4_addr", "", IPv4Address("0.0.0.0"))
V6 = Family("ip6", "ipv6_addr", "6", IPv6Address("::"))


def families(networks: Iterable[Network]) -> tuple[Family, ...]:
    """Those that any of the networks has."""
    return (V4, V6) if any(network.subnet6 is not None for network in networks) else (V4,)


def opened(dev: str) -> list[KernelObject]:
    """What a link of ours must have set before it can have IPv6 addresses (the host may have IPv6 switched off by default); no container
    may be the host's router."""
    return [Sysctl(f"ipv6/conf/{dev}/disable_ipv6", "0"), Sysctl(f"ipv6/conf/{dev}/accept_ra", "0")]


def gateways6(me: Node, dev: str, networks: Iterable[Network]) -> list[KernelObject]:
    """Forwarding, and every IPv6 gateway on `dev`, where DNS answers on it whatever is attached; the host's own address too, for networks
    without a tunnel."""
    gateways = [network.gateway6 for network in networks if network.gateway6 is not None]
    return [FORWARDING, *opened(dev), *(Addr(dev, IPv6Interface(address)) for address in (*gateways, me.tunnel6))] if gateways else []


def inside6(network: Network, endpoint: Endpoint) -> Inside6 | None:
    """What an endpoint's sandbox has of IPv6."""
    if network.subnet6 is None or network.gateway6 is None or endpoint.address6 is None:
        return None
    default = endpoint.default_route and not network.internal
    return Inside6(endpoint.address6, network.gateway6, network.subnet6, default, on_link(network))


def endpoint6_objects(network: Network, endpoint: Endpoint) -> list[KernelObject]:
    """What one endpoint needs on the host's side: on its link, or on the bridge, which answers for the gateway itself."""
    has = inside6(network, endpoint)
    if has is None:
        return []
    dev = backend_of(network).bridge(network) or endpoint.dev
    answers = [] if has.on_link else [*opened(dev), Addr(dev, IPv6Interface(has.gateway))]
    return [*answers, Neigh(dev, has.address, endpoint.mac), Route(IPv6Network(has.address), dev)]
