# SPDX-License-Identifier: Apache-2.0
"""What a container sends under an address that is not its own is dropped and counted, on its link, before anything else sees it.

In: an endpoint, its network, the addresses of its container. Out: the first rules of the chain of its link in the table `netdev plait`,
and what they lead to: `strangers` for sources that are no container's own but that some protocols begin with, `forged`, which counts by
link (set `forgers`) and drops. The links of containers on Docker's default bridge, which are Docker's, have such a chain too, which holds
nothing else.

MAC addresses are one endpoint's, IP addresses its container's: one with two networks answers by whichever its own routes say (the weak host
model, RFC 1122, section 3.3.4.2). Where containers are neighbours on one link, what they say of addresses there is checked as well.

Own packets meet one comparison of MACs and one of addresses; that there may be several costs those alone that have the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address

from plait.backends import on_link
from plait.model.addr import IPAddress, link_local
from plait.model.cluster import Block, Container, Endpoint, Network, Snapshot
from plait.model.hostlinks import BridgePort, ChildGuard, PortGuard, guard_of
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftChain, NftSet
from plait.model.spoofing import may_spoof
from plait.plan.dual import V4, V6

CAPABILITY = "guard"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`)."""
PORTS = "xdp"
"""What it must be able to do for ports of a switch that others steer."""
CHILDREN = "egress"
"""What it must be able to do for children of links of the host."""
GUARDS = frozenset({CAPABILITY, PORTS, CHILDREN})
FORGERS = "forgers"
"""Set of the links that forged packets came from within the hour, each with a counter."""
DOCKER_BRIDGE = "docker0"
"""Docker's default bridge."""
_FORGED, _STRANGERS = "forged", "strangers"
_LINK_LOCAL = "fe80::/10"
_BEGINS6 = "icmpv6 type { mld-listener-report, mld-listener-done, nd-neighbor-solicit, mld2-listener-report }"
"""What is sent before there is an address: the search for duplicates of it (RFC 4862, section 5.4), membership of groups (RFC 3590)."""
_TARGET = "@nh,384,128"
"""The address that a neighbour advertisement is about, where its header follows the one of IPv6 (RFC 4861, section 4.4)."""
BEGINS = ("ip saddr 0.0.0.0 udp dport 67 accept", "ip saddr 0.0.0.0 ip protocol igmp accept", f"ip6 saddr :: {_BEGINS6} accept")
TYPE = "@ll,96,16"
"""What a frame says that it is; a packet socket may have told the kernel otherwise (`meta protocol`), by which rules of IP go."""
TYPES = {"ip": "0x800", "arp": "0x806", "ip6": "0x86dd"}
_TAGGED = ("0x8100", "0x88a8")
_CLAIMS = "icmpv6 type nd-neighbor-advert"


def guard_objects(
    snapshot: Snapshot, networks: Collection[Network], links: Collection[str], ports: Mapping[str, BridgePort]
) -> list[KernelObject]:
    """What chains of links lead to, and, if this host has a block for Docker's bridge and that among its `links`, the chains of the bridge
    and of those of its `ports` (by container) that are there."""
    objects: list[KernelObject] = [
        forgers(FORGERS, "iface_index"),
        dropping(_FORGED, FORGERS, "iif"),
        NftChain(_STRANGERS, (*BEGINS, f"goto {_FORGED}"), family=NFT_FAST_FAMILY),
    ]
    block = bridge_block(snapshot)
    network = next((n for n in networks if block is not None and n.name == block.network), None)
    if block is None or network is None or DOCKER_BRIDGE not in links:
        return objects
    bound, free = _judged(snapshot, network, ports)
    objects += [_on_docker_port(container, port, network) for container, port in bound if port.dev in links]
    return objects if free else [*objects, *_on_docker_bridge(snapshot, networks, block.cidr)]


def bridge_block(snapshot: Snapshot) -> Block | None:
    """What Docker's bridge of this host has its addresses from."""
    return next((b for b in snapshot.blocks.values() if b.node == snapshot.me and b.purpose == "bridge"), None)


def bridged(snapshot: Snapshot, network: str, ports: Mapping[str, BridgePort]) -> Iterator[tuple[Container, BridgePort]]:
    """The containers of this node that have an address on Docker's bridge, which is part of `network`, and whose `ports` are known."""
    for id_, port in sorted(ports.items()):
        container = snapshot.containers.get((snapshot.me, id_))
        if container is not None and network in container.addresses:
            yield container, port


def _judged(snapshot: Snapshot, network: Network, ports: Mapping[str, BridgePort]) -> tuple[list[tuple[Container, BridgePort]], bool]:
    """Those that may not forge, and whether some on the bridge may: what it hands to the host cannot be told from theirs then."""
    found = list(bridged(snapshot, network.name, ports))
    bound = [(container, port) for container, port in found if not may_spoof(container.labels, network.options)]
    return bound, may_spoof({}, network.options) or len(bound) < len(found)


def _on_docker_port(container: Container, port: BridgePort, network: Network) -> NftChain:
    """All that it says of itself is checked, since its neighbours are on one link with it."""
    first = container.addresses[network.name]
    others = {*container.addresses.values(), *container.addresses6.values(), *container.elsewhere} - {first}
    own = (first, *sorted(others, key=lambda a: (a.version, a)))
    return NftChain(port.dev, _rules(port.mac, own, neighbours=True), ingress(port.dev), NFT_FAST_FAMILY)


def _on_docker_bridge(snapshot: Snapshot, networks: Iterable[Network], block: IPv4Network) -> list[KernelObject]:
    """Whose port is not known, as in the first moment of a container: of addresses of plait's, those there have those of the block, and
    those on other networks that they have besides. While dockerd has yet to be started with the block they have others, which are no
    matter here."""
    elsewhere = (a for addresses in own_addresses(snapshot).values() if any(a in block for a in addresses) for a in addresses)
    others = frozenset(str(address) for address in elsewhere if address.version == 4 and address not in block)
    rule = f"ip saddr @pools ip saddr != {block} ip saddr != @bridged goto {_FORGED}"
    return [
        NftSet("pools", V4.type, frozenset(map(str, V4.subnets(networks))), ("interval",), family=NFT_FAST_FAMILY),
        NftSet("bridged", V4.type, others, family=NFT_FAST_FAMILY),
        NftChain(DOCKER_BRIDGE, (rule,), ingress(DOCKER_BRIDGE), NFT_FAST_FAMILY),
    ]


def forgers(name: str, kind: str) -> NftSet:
    """Who forged within the hour, each with a counter: its elements are what packets put there."""
    return NftSet(name, kind, frozenset(), ("dynamic", "timeout"), family=NFT_FAST_FAMILY, bounds=("size 4096",))


def dropping(chain: str, name: str, by: str) -> NftChain:
    """Drops what is led to it, counted in that set by `by`; also when the set is full."""
    return NftChain(chain, (f"update @{name} {{ {by} timeout 1h counter }}", "drop"), family=NFT_FAST_FAMILY)


def ingress(dev: str) -> str:
    """The declaration of the chain that sees what `dev` receives."""
    return f'type filter hook ingress device "{dev}" priority filter; policy accept;'


def own_addresses(snapshot: Snapshot) -> Mapping[str, tuple[IPAddress, ...]]:
    """By id of each endpoint of this node, every address of its container: those of all its endpoints, and what its engine gave it."""
    own = [_carried(snapshot, e) for e in snapshot.endpoints.values() if e.node == snapshot.me]
    shared: dict[tuple[str, str], set[IPAddress]] = {}
    for endpoint in own:
        if endpoint.container:
            shared.setdefault((endpoint.runtime, endpoint.container), set()).update(endpoint.present)
    for runtime, id_ in shared:
        container = snapshot.containers.get((snapshot.me, id_))
        if container is not None and container.runtime == runtime:
            shared[runtime, id_] |= {*container.addresses.values(), *container.elsewhere}
    return {
        e.id: tuple(sorted({*e.present, *shared.get((e.runtime, e.container), ())}, key=lambda a: (a not in e.present, a.version, a)))
        for e in own
    }


def _carried(snapshot: Snapshot, endpoint: Endpoint) -> Endpoint:
    """Without IPv6 where its network has none here; what a server of the link gave, it has all the same."""
    network = snapshot.networks.get(endpoint.network)
    if endpoint.address6 is None or network is None or network.subnet6 is not None or network.by_dhcp6:
        return endpoint
    return replace(endpoint, address6=None)


def guard_rules(network: Network, endpoint: Endpoint, own: Iterable[IPAddress]) -> tuple[str, ...]:
    """The first rules of the chain of its link; none where it may send under any address. `own`: the addresses of its container, those of
    the endpoint itself first."""
    return () if may_spoof(endpoint.labels, network.options) else _rules(endpoint.mac, own, on_link(network))


def _rules(mac: str, own: Iterable[IPAddress], neighbours: bool) -> tuple[str, ...]:
    rules = [f"ether saddr != {mac.lower()} goto {_FORGED}"]
    addresses = {family: [str(a) for a in own if a.version == family.anywhere.version] for family in (V4, V6)}
    addresses[V6].append(str(link_local(mac) if neighbours else _LINK_LOCAL))
    for family, found in addresses.items():
        others = _none_of(f"{family.ip} saddr", found) or f"meta protocol {family.ip}"
        rules.append(f"{others} goto {_STRANGERS}")
    rules.append(f"{_none_of('arp saddr ip', [*addresses[V4], str(V4.anywhere)])} goto {_FORGED}")
    return (*rules, *(_said_to_neighbours(addresses[V6]) if neighbours else ()))


def port_guard(network: Network, endpoint: Endpoint, own: Iterable[IPAddress]) -> list[PortGuard]:
    """What judges a port of a switch, which may read it before any rule sees a packet; nothing where it may send under any address."""
    if may_spoof(endpoint.labels, network.options):
        return []
    return [guard_of(endpoint.dev, endpoint.mac.lower(), own)]


def child_guard(network: Network, endpoint: Endpoint, own: Iterable[IPAddress], netns: str) -> list[ChildGuard]:
    """What judges a child of a link of the host in its namespace; nothing where it may send under any address, or has the link to itself.
    One that has its parent's MAC is not asked for that."""
    if may_spoof(endpoint.labels, network.options) or network.options.get("mode") == "passthru":
        return []
    rules, strangers = child_rules(endpoint, own), (*BEGINS, f"goto {_FORGED}")
    digest = hashlib.sha256("\n".join((*rules, *strangers)).encode()).hexdigest()[:10]
    return [ChildGuard(endpoint.dev, netns, digest, rules, strangers)]


def child_rules(endpoint: Endpoint, own: Iterable[IPAddress]) -> tuple[str, ...]:
    """What a child of a link of the host is judged by; its MAC only if it has one of its own. Without a lease it has no IPv4 address."""
    own = tuple(own)
    judged = _rules(endpoint.mac, own, neighbours=True) if endpoint.mac else _rules("", own, neighbours=False)[1:]
    its_mac = judged[:1] if endpoint.mac else ()
    other = [f"{TYPE} {number} meta protocol != {name} goto {_FORGED}" for name, number in TYPES.items()]
    tagged = [f"{TYPE} {number} goto {_FORGED}" for number in _TAGGED]
    most = [f"{TYPE} {TYPES['ip']} ip saddr {endpoint.address} accept"] if endpoint.address in own else []
    return (*its_mac, *most, *other, *tagged, *judged[len(its_mac) :])


def _none_of(what: str, values: Iterable[str]) -> str:
    """A rule's matches for a `what` that is none of `values`, compared one after the other: nft would print a set of them with neighbours
    made one range."""
    return " ".join(f"{what} != {value}" for value in values)


def _said_to_neighbours(own: Iterable[str]) -> tuple[str, ...]:
    """Nobody says of another one's address that it has it, nor that it is a router (RFC 6105), nor says so behind further headers, where a
    rule cannot see of which address."""
    targets = " ".join(f"{_TARGET} != 0x{int(IPv6Address(address)):032x}" for address in own)
    return (
        f"icmpv6 type {{ nd-router-advert, nd-redirect }} goto {_FORGED}",
        f"{_CLAIMS} ip6 nexthdr != ipv6-icmp goto {_FORGED}",
        f"{_CLAIMS} {targets} goto {_FORGED}",
    )
