# SPDX-License-Identifier: Apache-2.0
"""The nft table `netdev plait`: traffic inside one network goes from device to device as soon as it was received.

Data in: the networks, this node's endpoints, the routes that the backends planned. Data out: per endpoint rules for the chain of its link
(`entrance.py`), per tunnel device one chain on that, and the maps `here` (address -> link of an endpoint of this node), `next` (block ->
next hop of a peer in the tunnel) and `plain` (block -> next hop on the underlay's link). What comes by the underlay's link without a
tunnel has a chain there too, if nobody else's rules have to see what this host receives.

A packet that a chain forwards (`fwd`, which lowers the TTL and asks the neighbour table for the MAC) meets no route, no connection
tracking, no rule of anybody: measured, 1.18 times the round trips and 1.15 times the connections a second of the way through the IP
stack. Whatever a chain does not know for sure (other addresses than the endpoint's own, gateways, hosts, expired TTLs, answers of
published ports, peers with a smaller MTU) passes on to that way, which is always complete: without this table everything works, slower.

On networks of layer 2 frames go as they are (`frames.py`).

What is encrypted goes the same way into the WireGuard device and out of it. That has no Ethernet, so what the neighbour table says does not
matter.

Devices are named, but the kernel keeps their indexes: after a link was made anew, its elements and rules read back different, and a pass
puts them right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from plait.backends import backend_of, on_link, tunnel_port
from plait.backends.wireguard import DEVICE
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Endpoint, Network
from plait.model.objects import NFT_FAST_FAMILY, PREFIX, Fdb, KernelObject, NftChain, NftElement, NftSet, Route
from plait.plan.dual import V4, V6, Family, families
from plait.plan.frames import frame_element, frame_rules, frame_sets, switches_fast, to_neighbours
from plait.plan.guard import ingress
from plait.plan.vips import ENDS, ends_sets

CAPABILITY = "fwd"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`)."""
_PLAIN_NETWORKS = 8
"""So many networks are told apart by a rule each on a tunnel device; further ones by a set of pairs of ranges, which costs more."""
TUNNELS = f"{PREFIX}x"
"""What the names of tunnel devices that carry Ethernet frames begin with."""
_ALIVE = {V4: "ip ttl > 1", V6: "ip6 hoplimit > 1"}
"""A packet whose time is over needs an ICMP answer, which only the IP stack gives."""
_FRAGMENT = {V4: "ip frag-off & 16383 != 0 accept", V6: "exthdr frag exists accept"}

_TO_BACKEND = {f: f"{f.ip} daddr . meta l4proto . th dport @{ENDS}{f.end} accept" for f in (V4, V6)}
_FROM_BACKEND = {f: f"{f.ip} saddr . meta l4proto . th sport @{ENDS}{f.end} accept" for f in (V4, V6)}


_NONE: Mapping[Family, Collection[str]] = {}


@dataclass(frozen=True, slots=True)
class Ways:
    """What packets may find on this host: the `links` that it has (a rule cannot name what is not there, and takes the whole table with
    it), the link that `plain` routes go by, of networks (by name) that have any, in which families there are
    `services`."""

    links: Collection[str] = ()
    plain: Mapping[str, str] = field(default_factory=dict)
    services: tuple[Family, ...] = ()


def fast_objects(
    networks: Sequence[Network],
    endpoints: Iterable[Endpoint],
    rows: Iterable[Route | Fdb],
    ways: Ways,
    shortcut: str,
    ends: Mapping[Family, Collection[str]] = _NONE,
) -> list[KernelObject]:
    """All of it but the chains of endpoints' links. `networks` in their order of name, `endpoints` those of this node, `rows` all of
    routes and tunnels that are planned; `shortcut`: the link that plain routes go by, if it may give containers what it receives; `ends`:
    the sets of services' backends (`plan/vips.py`)."""
    planned, by_name, found = list(rows), {network.name: network for network in networks}, list(endpoints)
    routes = [row for row in planned if isinstance(row, Route)]
    own = [endpoint for endpoint in found if not on_link(by_name[endpoint.network])]
    present = families(networks)
    objects: list[KernelObject] = [obj for family in present for obj in _maps(family, networks, own, routes)]
    objects += frame_sets(networks, found, (row for row in planned if isinstance(row, Fdb)))
    tunnels = {device: [n for n in networks if _device(n) == device] for device in sorted({_device(n) for n in networks})}
    objects += ends_sets(ends, NFT_FAST_FAMILY)
    objects += [_from_link(device, found, ways.services) for device, found in tunnels.items() if _usable(device, ways.links)]
    objects += [_from_switched(network, ways.services) for network in networks if switches_fast(network)]
    plain = [(network, ways.plain[network.name]) for network in networks if network.name in ways.plain]
    if not plain:
        return objects
    direct = [network for network, _ in plain]
    objects += [_next(family, "plain", plain, routes) for family in families(direct)]
    return [*objects, *([_from_link(shortcut, direct, ways.services)] if shortcut else [])]


def _maps(family: Family, networks: Sequence[Network], own: Sequence[Endpoint], routes: Iterable[Route]) -> list[KernelObject]:
    tunnelled = [(network, _device(network)) for network in networks if _device(network)]
    here = frozenset(_element(address, endpoint) for endpoint in own if (address := family.address(endpoint)) is not None)
    kind, subnets = family.type, family.subnets(networks)
    maps = [_here(family, here), _next(family, "next", tunnelled, routes)]
    if len(subnets) > _PLAIN_NETWORKS:
        pairs = frozenset(f"{subnet} . {subnet}" for subnet in subnets)
        maps.append(NftSet(f"same{family.end}", f"{kind} . {kind}", pairs, ("interval",), family=NFT_FAST_FAMILY))
    return [*maps]


def _next(family: Family, name: str, ways: Sequence[tuple[Network, str]], routes: Iterable[Route]) -> NftSet:
    """The map from blocks of networks that are reached by these devices to next hops."""
    planned, kind = list(routes), family.type
    blocks = {route.dst.network_address: _hop(route) for route in planned if _is_block(family, route, ways)}
    split = _split(family, planned, [network for network, _ in ways])
    hops = frozenset(f"{block} : {via}" for block, via in blocks.items() if block not in split)
    return NftSet(f"{name}{family.end}", f"{kind} : {kind}", hops, kind="map", family=NFT_FAST_FAMILY)


def on_fast_path(network: Network) -> bool:
    """Whether traffic inside `network` may go past this host's stack, or past its bridge; isolated ports may have no shortcut."""
    return not on_link(network) or switches_fast(network)


def fast_elements(network: Network, endpoint: Endpoint) -> list[NftElement]:
    """What leads to one endpoint. An attach puts it at once: the addresses may have been another endpoint's a moment ago."""
    if switches_fast(network):
        return [frame_element(network, endpoint)]
    found = [(family, address) for family in (V4, V6) if (address := family.address(endpoint)) is not None]
    return [NftElement(_here(family, frozenset()), _element(address, endpoint)) for family, address in found]


def fast_rules(endpoint: Endpoint, network: Network, ways: Ways) -> list[str]:
    """What one endpoint sends, only from its own addresses. What is for none of its network, a virtual address for one, is let go by the
    first look: each further one costs it some of what the fast path saves others. Answers of its published ports may have to be turned
    back, and of a packet in fragments only the first tells its port. While there are services, what an endpoint sends to a backend is
    tracked on this host, and so is what it answers as one to somebody here; its answers to other hosts are their matter."""
    hops = [("plain", ways.plain[network.name])] if network.name in ways.plain else []
    hops += [("next", _device(network))] if _device(network) and _usable(_device(network), ways.links) else []
    present = families([network])
    led = [family for family in present if family in ways.services]
    rules = [f"{proto} sport {port} accept" for proto, port in sorted({(p.proto, p.container_port) for p in endpoint.ports})]
    rules += [_TO_BACKEND[family] for family in led]
    if rules:
        rules += [_FRAGMENT[family] for family in present]
    if switches_fast(network):
        to_others, to_those_here = frame_rules(network)
        return [*rules, to_others, *(_FROM_BACKEND[family] for family in led), to_those_here]
    rules = [*(f"{family.ip} daddr != {family.subnet(network)} accept" for family in present), *rules]
    for family in present:
        rules += _to_others(family, endpoint, network, hops)
        rules += [_FROM_BACKEND[family]] if family in led else []
        rules += _to_those_here(family, endpoint, network)
    return rules


def _to_others(family: Family, endpoint: Endpoint, network: Network, ways: Iterable[tuple[str, str]]) -> list[str]:
    """Other hosts first, whose packets have the longer way: each of these rules costs some of it. Every host has the gateway, whoever's
    block it lies in. `ways`: maps of next hops with the device that these are on."""
    address, ip = family.address(endpoint), family.ip
    if address is None:
        return []
    rules: list[str] = []
    for hops, device in ways:
        onward = f'fwd {ip} to {ip} daddr & {_mask(family, network)} map @{hops}{family.end} device "{device}"'
        rules.append(f"{ip} saddr {address} {ip} daddr != {family.gateway(network)} {_ALIVE[family]} {onward}")
    return rules


def _to_those_here(family: Family, endpoint: Endpoint, network: Network) -> list[str]:
    address, ip = family.address(endpoint), family.ip
    return [f"{ip} saddr {address} {_ALIVE[family]} {_to_endpoint(family)}"] if address is not None else []


def _mask(family: Family, network: Network) -> IPAddress:
    prefix = _block_prefix(family, network)
    return IPv4Network((0, prefix)).netmask if family is V4 else IPv6Network((0, prefix)).netmask


def _block_prefix(family: Family, network: Network) -> int:
    """A block has as many addresses of IPv6 as of IPv4."""
    return network.block_prefix if family is V4 else 96 + network.block_prefix


def _to_endpoint(family: Family) -> str:
    return f"fwd {family.ip} to {family.ip} daddr device {family.ip} daddr map @here{family.end}"


def _device(network: Network) -> str:
    """The network's tunnel device, "" if it has none, or is on a bridge. While keys are rotated what the spare device carries goes the
    complete way."""
    device = backend_of(network).device(network)
    return device if device.startswith(TUNNELS) or device == DEVICE else ""


def _here(family: Family, elements: frozenset[str]) -> NftSet:
    return NftSet(f"here{family.end}", f"{family.type} : iface_index", elements, kind="map", family=NFT_FAST_FAMILY)


def _element(address: IPAddress, endpoint: Endpoint) -> str:
    return f'{address} : "{endpoint.dev}"'


def _is_block(family: Family, route: Route, ways: Iterable[tuple[Network, str]]) -> bool:
    """Whether a look-up by the network's block prefix finds exactly this route by its device, and every packet fits as it is."""
    hop = _hop(route)
    if hop is None or route.mtu or route.dst.version != hop.version or (route.dst.version == 4) != (family is V4):
        return False
    fit = (network for network, device in ways if route.dev == device)
    return any(_is_in(route.dst, family.subnet(n)) and route.dst.prefixlen == _block_prefix(family, n) for n in fit)


def _usable(device: str, links: Collection[str]) -> bool:
    """Not every host can encrypt, and a process that does may have crashed; the kernel's own devices are there when the plan is done."""
    return device.startswith(TUNNELS) or device in links


def _hop(route: Route) -> IPAddress | None:
    """What the neighbour table is asked for. A WireGuard device has no neighbours, so that any address does: one a block, because each
    takes a row all the same."""
    return route.dst.network_address if route.dev == DEVICE else route.via


def _split(family: Family, routes: Iterable[Route], networks: Iterable[Network]) -> frozenset[IPAddress]:
    """Blocks of which single addresses lie elsewhere, on this host too: a block was leased to another node while they were in use."""
    masks = [(family.subnet(n), _mask(family, n)) for n in networks]
    single = [route.dst for route in routes if route.dst.prefixlen == route.dst.max_prefixlen]
    return frozenset(
        type(mask)(int(dst.network_address) & int(mask))
        for dst in single
        for subnet, mask in masks
        if mask != dst.netmask and subnet is not None and subnet.version == dst.version and _is_in(dst, subnet)
    )


def _is_in(part: IPNetwork, whole: IPNetwork | None) -> bool:
    return whole is not None and part.network_address in whole


def _answers(networks: Iterable[Network], services: Collection[Family]) -> list[str]:
    return [rule for family in families(networks) if family in services for rule in (_FROM_BACKEND[family], _FRAGMENT[family])]


def _from_switched(network: Network, services: Collection[Family]) -> NftChain:
    """On the tunnel's port of a bridge: an answer by a virtual address to somebody here goes the complete way."""
    dev, rules = tunnel_port(network), _answers([network], services)
    return NftChain(dev, (*rules, to_neighbours(network)), ingress(dev), NFT_FAST_FAMILY)


def _from_link(dev: str, networks: Sequence[Network], services: Collection[Family]) -> NftChain:
    rules = _answers(networks, services)
    for family in families(networks):
        ip, subnets, onward = family.ip, family.subnets(networks), f"{_ALIVE[family]} {_to_endpoint(family)}"
        rules += [f"{ip} saddr {subnet} {ip} daddr {subnet} {onward}" for subnet in subnets[:_PLAIN_NETWORKS]]
        if len(subnets) > _PLAIN_NETWORKS:
            rules.append(f"{ip} saddr . {ip} daddr @same{family.end} {onward}")
    return NftChain(dev, tuple(rules), ingress(dev), NFT_FAST_FAMILY)
