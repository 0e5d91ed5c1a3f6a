# SPDX-License-Identifier: Apache-2.0
"""The nft table `netdev plait`: traffic inside one network goes from device to device as soon as it was received.

Data in: the networks, this node's endpoints, the routes that the backends planned. Data out: per endpoint one chain on its link, per tunnel
device one chain on that, and the maps `here` (address -> link of an endpoint of this node) and `next` (block -> next hop of a peer).

A packet that a chain forwards (`fwd`, which lowers the TTL and asks the neighbour table for the MAC) meets no route, no connection
tracking, no rule of anybody: measured, 1.18 times the round trips and 1.15 times the connections a second of the way through the IP
stack. Whatever a chain does not know for sure (other addresses than the endpoint's own, gateways, hosts, expired TTLs, answers of
published ports, peers with a smaller MTU) passes on to that way, which is always complete: without this table everything works, slower.

Devices are named, but the kernel keeps their indexes: after a link was made anew, its elements and rules read back different, and a pass
puts them right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network

from plait.backends import BACKENDS
from plait.model.cluster import Endpoint, Network
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftChain, NftElement, NftSet, Route

CAPABILITY = "fwd"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`)."""
_PLAIN_NETWORKS = 8
"""So many networks are told apart by a rule each on a tunnel device; further ones by a set of pairs of ranges, which costs more."""
_ALIVE = "ip ttl > 1"
"""A packet whose time is over needs an ICMP answer, which only the IP stack gives."""
_TO_ENDPOINT = "fwd ip to ip daddr device ip daddr map @here"


def fast_objects(networks: Sequence[Network], endpoints: Iterable[Endpoint], routes: Iterable[Route]) -> list[KernelObject]:
    """The whole table. `networks` in their order of name, `endpoints` those of this node, `routes` all that are planned."""
    own = list(endpoints)
    by_name = {network.name: network for network in networks}
    hops = frozenset(f"{route.dst.network_address} : {route.via}" for route in routes if _is_block(route, networks))
    objects: list[KernelObject] = [
        _here(frozenset(_element(endpoint) for endpoint in own)),
        NftSet("next", "ipv4_addr : ipv4_addr", hops, kind="map", family=NFT_FAST_FAMILY),
    ]
    if len(networks) > _PLAIN_NETWORKS:
        pairs = frozenset(f"{network.subnet} . {network.subnet}" for network in networks)
        objects.append(NftSet("same", "ipv4_addr . ipv4_addr", pairs, ("interval",), family=NFT_FAST_FAMILY))
    tunnels = {device: [n for n in networks if _device(n) == device] for device in sorted({_device(n) for n in networks} - {""})}
    objects += [_from_tunnel(device, found) for device, found in tunnels.items()]
    objects += [fast_chain(endpoint, by_name[endpoint.network]) for endpoint in own]
    return objects


def fast_element(endpoint: Endpoint) -> NftElement:
    """What leads to one endpoint. An attach puts it at once: the address may have been another endpoint's a moment ago."""
    return NftElement(_here(frozenset()), _element(endpoint))


def fast_chain(endpoint: Endpoint, network: Network) -> NftChain:
    """What one endpoint sends, only from its own address. Answers of its published ports may have to be turned back, and of a packet in
    fragments only the first tells its port."""
    rules = [f"{proto} sport {port} accept" for proto, port in sorted({(p.proto, p.container_port) for p in endpoint.ports})]
    if rules:
        rules.append("ip frag-off & 16383 != 0 accept")
    within = f"ip saddr {endpoint.address} ip daddr {network.subnet} {_ALIVE}"
    rules.append(f"{within} {_TO_ENDPOINT}")
    if device := _device(network):
        rules.append(f"ip daddr {network.gateway} accept")  # every host has it, whoever's block it lies in
        mask = IPv4Network((0, network.block_prefix)).netmask
        rules.append(f'{within} fwd ip to ip daddr & {mask} map @next device "{device}"')
    return NftChain(endpoint.dev, tuple(rules), _hook(endpoint.dev), NFT_FAST_FAMILY)


def _device(network: Network) -> str:
    return BACKENDS[network.backend].device(network)


def _here(elements: frozenset[str]) -> NftSet:
    return NftSet("here", "ipv4_addr : iface_index", elements, kind="map", family=NFT_FAST_FAMILY)


def _element(endpoint: Endpoint) -> str:
    return f'{endpoint.address} : "{endpoint.dev}"'


def _is_block(route: Route, networks: Iterable[Network]) -> bool:
    """Whether a look-up by the network's block prefix finds exactly this route, and every packet fits through it as it is."""
    whole = any(route.dst.subnet_of(n.subnet) and route.dst.prefixlen == n.block_prefix for n in networks)
    return route.via is not None and not route.mtu and whole


def _from_tunnel(dev: str, networks: Sequence[Network]) -> NftChain:
    rules = [f"ip saddr {n.subnet} ip daddr {n.subnet} {_ALIVE} {_TO_ENDPOINT}" for n in networks[:_PLAIN_NETWORKS]]
    if len(networks) > _PLAIN_NETWORKS:
        rules.append(f"ip saddr . ip daddr @same {_ALIVE} {_TO_ENDPOINT}")
    return NftChain(dev, tuple(rules), _hook(dev), NFT_FAST_FAMILY)


def _hook(dev: str) -> str:
    return f'type filter hook ingress device "{dev}" priority filter; policy accept;'
