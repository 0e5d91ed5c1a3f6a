# SPDX-License-Identifier: Apache-2.0
"""Networks whose containers are on a link of the host: what they need of this host, and what is refused because of what they are.

Data in: networks, what the kernel can do, the links that there are. Data out: an error that says why, or the condition `parent-missing`.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from plait.backends import child_of, needs, own_mac
from plait.ipam import origin, without_router
from plait.model.addr import AddressRange, IPAddress
from plait.model.cluster import Container, Endpoint, Network, Node, PortMapping, Snapshot
from plait.model.errors import ConfigError, NotFound, NotSupported
from plait.plan.desired import endpoint_mac
from plait.plan.exposed import HOST
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.serve.dns_socket import Place

CODE = "parent-missing"
DNS_PORT = 53


def links_here() -> frozenset[str]:
    """Names of this host's links."""
    return frozenset(name for _, name in socket.if_nameindex())


def links_for(snapshot: Snapshot, bridged: bool) -> frozenset[str]:
    """`links_here`, none where it does not matter which there are; `bridged`: this host has a block for its engine's default bridge."""
    needed = bridged or any(child_of(n) is not None or n.encrypted for n in snapshot.networks.values())
    return links_here() if needed else frozenset()


def of_link(request: NetworkRequest) -> NetworkRequest:
    """Where a DHCP server gives the addresses, IPv6 is asked for by an option; routers say who leads on. ConfigError."""
    if request.options.get("ipam") != "dhcp" or not request.dual:
        return request
    if request.gateway6 is not None:
        raise ConfigError("gateway6", str(request.gateway6), "is what routers of the link say", "leave it out")
    return replace(request, ipv6=False, options={**request.options, "ipam6": "dhcp"})


def designed(network: Network, request: NetworkRequest, able: Collection[str], nodes: Collection[Node]) -> Network:
    """A network that shall be made, without the addresses of `nodes`, which lie on that link too perhaps. ConfigError or NotSupported for
    what such a network cannot be; others are returned as they are."""
    if child_of(network) is None:
        return network
    if request.subnet is None:
        raise ConfigError(
            "subnet", "", "is not given, but it is that of the link", "name it with --subnet, and the link's router with --gateway"
        )
    if network.by_dhcp and (request.ip_range or request.excluded):
        which = "ip-range" if request.ip_range else "exclude"
        raise ConfigError(
            which, str(request.ip_range or request.excluded[0]), "is the DHCP server's matter", "say it there, and leave it out"
        )
    if request.internal:
        raise ConfigError("internal", "true", "cannot be promised on a link of the host, where others are", "leave it out")
    _check_kernel(network, able)
    return without_hosts(network, nodes)


def without_hosts(network: Network, nodes: Iterable[Node]) -> Network:
    """A network on a link of the hosts without the addresses of `nodes` and of its router; others are returned as they are."""
    if child_of(network) is None:
        return network
    network = without_router(network)
    taken = {_four(network, node.address) for node in nodes} - {None, network.gateway}
    own = tuple(AddressRange(address, address) for address in sorted(a for a in taken if a is not None and a in network.subnet))
    return replace(network, excluded=(*network.excluded, *(one for one in own if one not in network.excluded)))


def _four(network: Network, address: IPAddress) -> IPv4Address | None:
    """The address of the network's IPv4 that nobody may have if `address` is taken; None if there is none."""
    return address if isinstance(address, IPv4Address) else origin(network, address)


def permit(network: Network, request: AttachRequest, able: Collection[str]) -> None:
    """NotSupported or NotFound if this host cannot attach that. Ports are `check_ports`'s matter."""
    if child_of(network) is None:
        return
    if request.runtime == HOST:
        raise NotSupported(
            f"exposing network {network.name} to this host: its containers are on the link {network.options['parent']}, where a host does "
            f"not reach its own; use another host, or a network of another backend"
        )
    _check_kernel(network, able)
    if request.mac and not own_mac(network):
        raise NotSupported(f"containers of network {network.name} have the MAC of their link: leave out {request.mac}")
    check_parent(network)


def check_parent(network: Network) -> None:
    """NotFound if this host has not the link that the network's containers are on."""
    parent = network.options["parent"]
    if parent not in links_here():
        raise NotFound(
            f"attaching to network {network.name}: this host has no link {parent}; `ip link` lists those that it has, and "
            f"`plait network set {network.name} -o parent=LINK` names another one for all hosts"
        )


def mac_of(network: Network, request: AttachRequest) -> str:
    """The MAC of an endpoint that is asked for, "" where it has that of its link."""
    return request.mac or (endpoint_mac(request.endpoint) if own_mac(network) else "")


def check_ports(network: Network, ports: Sequence[PortMapping]) -> None:
    """NotSupported if ports are to be published that cannot be."""
    if ports and child_of(network) is not None:
        raise NotSupported(
            f"publishing ports of a container of network {network.name}: it is on the link {network.options['parent']} with an address of "
            f"its own, and the host cannot reach it; use that address, or a network of another backend"
        )


def missing(snapshot: Snapshot, links: Collection[str]) -> dict[str, str]:
    """Networks by name with containers here that have no link, with what to say of each."""
    here: dict[str, int] = {}
    for endpoint in snapshot.endpoints.values():
        network = snapshot.networks.get(endpoint.network)
        if endpoint.node == snapshot.me and network is not None and child_of(network) is not None:
            here[network.name] = here.get(network.name, 0) + 1
    parents = {name: snapshot.networks[name].options["parent"] for name in here}
    return {
        name: f"network {name}: this host has no link {parent}, which {here[name]} of its containers need"
        for name, parent in parents.items()
        if parent not in links
    }


def _check_kernel(network: Network, able: Collection[str]) -> None:
    lacks = sorted(needs(network) - set(able))
    if lacks:
        raise NotSupported(
            f"network {network.name} is of backend {network.backend}, and this host's kernel has no {', '.join(lacks)}: load the module "
            f"(`modprobe {_MODULES.get(lacks[0], lacks[0])}`), or use a host whose kernel has it"
        )


_MODULES = {"vlan": "8021q"}


def resolver_of(network: Network, by_host: str) -> str:
    """Where containers of the network find DNS: at its gateway; or, since a router of their link is no host of plait, at `by_host`, which
    is an address of their own loopback for them; "" if they shall not."""
    if child_of(network) is None:
        return str(network.gateway)
    return by_host if network.options.get("dns") != "false" else ""


def resolver_places(snapshot: Snapshot, netns: Mapping[str, str], by_host: str) -> set[tuple[str, int]]:
    """Where DNS is to answer in the namespaces of this node's containers on links of the host. `netns`: those of endpoints that have none
    in their record."""
    places = set()
    for endpoint in snapshot.endpoints.values():
        network, path = snapshot.networks.get(endpoint.network), endpoint.netns or netns.get(endpoint.id)
        if endpoint.node != snapshot.me or network is None or not path or child_of(network) is None:
            continue
        if address := resolver_of(network, by_host):
            places.add((str(Place(address, str(endpoint.address), path)), DNS_PORT))
    return places


def servers_of(resolver: str, endpoint: Endpoint) -> list[str]:
    """Where the endpoint's container finds DNS: by `resolver`, else ("": plait does not answer) by what came with its lease."""
    return [resolver] if resolver else [str(one) for one in (endpoint.leased.dns if endpoint.leased is not None else ())]


def router_of(network: Network, endpoint: Endpoint) -> str:
    """Who leads the endpoint out, "" if nobody does."""
    if endpoint.leased is not None:
        return str(endpoint.leased.gateway or "")
    return "" if network.internal else str(network.gateway)


def as_leased(container: Container, endpoints: Iterable[Endpoint]) -> Container:
    """The container with the addresses that its leases give it, whatever its engine was once told; without those that it has lost."""
    leased = [e for e in endpoints if e.leased is not None and e.container == container.id and e.runtime == container.runtime]
    if not leased:
        return container
    lost = {e.network for e in leased if e.leased is not None and e.leased.lost}
    has = {**container.addresses, **{e.network: e.address for e in leased}}
    six = {**container.addresses6, **{e.network: e.address6 for e in leased if e.address6 is not None}}
    gone = {e.network for e in leased if e.address6 is None}
    return replace(
        container,
        addresses={name: address for name, address in has.items() if name not in lost},
        addresses6={name: address for name, address in six.items() if name not in gone},
    )
