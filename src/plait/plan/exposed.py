# SPDX-License-Identifier: Apache-2.0
"""The host's own address in a network that is exposed to it (`plait expose`).

In: the endpoints of this node whose runtime is `HOST`. Out: their addresses on a link of the host, and the host's routes into their
networks with that address as the source it speaks from. A container of an internal network has no way but into its own subnet, so it can
answer only a host that speaks from there. To other nodes it is an address of this node's block like any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface

from plait.backends import backend_of
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.objects import GATEWAY_LINK, Addr, KernelObject, Route

HOST = "host"
"""The runtime of an endpoint that is no container's but the host's."""


def host_link(network: Network) -> str:
    """The link that carries the host's address in `network`: the one with the gateway that the containers ask by ARP."""
    return backend_of(network).bridge(network) or GATEWAY_LINK


def exposed_here(snapshot: Snapshot) -> list[Endpoint]:
    """This node's endpoints that are the host's own, in networks that exist."""
    own = (e for e in snapshot.endpoints.values() if e.runtime == HOST and e.node == snapshot.me and e.network in snapshot.networks)
    return sorted(own, key=lambda e: e.id)


def host_objects(network: Network, endpoint: Endpoint) -> list[KernelObject]:
    """The addresses of one such endpoint; IPv6 as far as this host carries it."""
    dev = host_link(network)
    found: list[KernelObject] = [Addr(dev, IPv4Interface(endpoint.address))]
    if network.subnet6 is not None and endpoint.address6 is not None:
        found.append(Addr(dev, IPv6Interface(endpoint.address6)))
    return found


def spoken(objects: Iterable[KernelObject], snapshot: Snapshot, exposed: Sequence[Endpoint]) -> list[KernelObject]:
    """`objects` with the routes into exposed networks spoken from the host's address there. Blackholes have no source."""
    sources: list[tuple[IPNetwork, IPAddress]] = []
    for endpoint in exposed:
        network = snapshot.networks[endpoint.network]
        sources.append((network.subnet, endpoint.address))
        if network.subnet6 is not None and endpoint.address6 is not None:
            sources.append((network.subnet6, endpoint.address6))

    def from_there(obj: KernelObject) -> KernelObject:
        if not isinstance(obj, Route) or obj.kind != "unicast":
            return obj
        source = next((address for subnet, address in sources if obj.dst.network_address in subnet), None)
        return obj if source is None else replace(obj, src=source)

    return [from_there(obj) for obj in objects] if sources else list(objects)
