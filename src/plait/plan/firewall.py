# SPDX-License-Identifier: Apache-2.0
"""The nft table `inet plait` of this node: isolation between networks, NAT to the outside, published ports.

Everything that depends on the number of networks, endpoints or ports is an element of a set or map, so a rule list of fixed
length decides each packet. Rules are spelled as `nft -s -nn list table` prints them, because they are compared with that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from plait.model.cluster import Endpoint, Network, PortMapping, Snapshot
from plait.model.objects import HookRule, KernelObject, NftChain, NftSet

ANY = IPv4Address("0.0.0.0")
_TUNNEL = "udp dport 4789 notrack accept"
_PLAIN_NETWORKS = 8
"""So many networks are matched by a rule each, which is quicker than a look-up in a set of pairs of ranges (measured: 36,300 round trips a
second against 33,700); further ones by the set, so that the chain stays of bounded length."""


def firewall_objects(snapshot: Snapshot, networks: Sequence[Network], gateway: bool, docker_bridge: bool) -> list[KernelObject]:
    """Chains, sets and maps of the table, and the two rules in Docker's documented hook that let overlay traffic pass its
    FORWARD policy."""
    own = [e for e in snapshot.endpoints.values() if e.node == snapshot.me and e.network in snapshot.networks]
    objects: list[KernelObject] = [*_sets(snapshot, networks), *port_objects(own, networks), *_chains(gateway)]
    objects += _hooks()
    return objects


def _sets(snapshot: Snapshot, networks: Iterable[Network]) -> list[KernelObject]:
    networks = list(networks)
    tunnels = {str(n.tunnel) for n in snapshot.nodes.values() if n.tunnel is not None}
    interval = ("interval",)
    return [
        NftSet("pools", "ipv4_addr", frozenset(str(n.subnet) for n in networks), interval),
        NftSet("same", "ipv4_addr . ipv4_addr", frozenset(f"{n.subnet} . {n.subnet}" for n in networks), interval),
        NftSet("internal", "ipv4_addr", frozenset(str(n.subnet) for n in networks if n.internal), interval),
        NftSet("hosts", "ipv4_addr", frozenset(tunnels)),
    ]


def port_objects(endpoints: Iterable[Endpoint], networks: Iterable[Network]) -> list[KernelObject]:
    """What depends on the published ports of this node's endpoints: a publication changes elements of maps alone, the first one and
    the last one also the chain `raw`."""
    exact: set[str] = set()
    wildcard: set[str] = set()
    hairpin: set[str] = set()
    published: set[str] = set()
    for endpoint in endpoints:
        for port in endpoint.ports:
            target = f"{endpoint.address} . {port.container_port}"
            if port.host_ip == ANY:
                wildcard.add(f"{port.proto} . {port.host_port} : {target}")
            else:
                exact.add(f"{port.host_ip} . {port.proto} . {port.host_port} : {target}")
            published.add(f"{endpoint.address} . {port.proto} . {port.container_port}")
        if endpoint.ports:
            hairpin.add(f"{endpoint.address} . {endpoint.address}")
    target_type = "ipv4_addr . inet_service"
    return [
        NftSet("ports", f"ipv4_addr . inet_proto . inet_service : {target_type}", frozenset(exact), kind="map"),
        NftSet("ports_any", f"inet_proto . inet_service : {target_type}", frozenset(wildcard), kind="map"),
        NftSet("hairpin", "ipv4_addr . ipv4_addr", frozenset(hairpin)),
        NftSet("published", "ipv4_addr . inet_proto . inet_service", frozenset(published)),
        _raw_chain(sorted(networks, key=lambda n: n.name), bool(published)),
    ]


def _raw_chain(networks: Sequence[Network], any_published: bool) -> NftChain:
    """Traffic inside one network needs no connection tracking, nor do the tunnel's own packets: it is what a packet between hosts costs
    most. Answers of published ports are tracked, because their addresses must be turned back.

    A container must not reach the host's loopback, which route_localnet (published ports on 127.0.0.1) would allow.
    """
    rules = [_TUNNEL, 'iifname "pl-*" ip daddr 127.0.0.0/8 drop']
    if any_published:
        rules.append('iifname "pl-*" ip saddr . meta l4proto . th sport @published accept')
    rules += [f'iifname "pl-*" ip saddr {n.subnet} ip daddr {n.subnet} notrack accept' for n in networks[:_PLAIN_NETWORKS]]
    if len(networks) > _PLAIN_NETWORKS:
        rules.append('iifname "pl-*" ip saddr . ip daddr @same notrack')
    return NftChain("raw", tuple(rules), "type filter hook prerouting priority raw; policy accept;")


def _chains(gateway: bool) -> list[KernelObject]:
    publish = (
        "dnat ip to ip daddr . meta l4proto . th dport map @ports",
        "fib daddr type local dnat ip to meta l4proto . th dport map @ports_any",
    )
    forward = [
        "ct state established,related,untracked accept",
        "ip saddr . ip daddr @same accept",
        "ct status dnat accept",
        "ip saddr @hosts accept",
        "ip saddr @internal drop",
        "ip daddr @internal drop",
        "ip saddr @pools ip daddr @pools drop",
    ]
    if not gateway:
        forward.append('iifname != "pl-x*" ip daddr @pools drop')
    return [
        NftChain("raw_output", (_TUNNEL,), "type filter hook output priority raw; policy accept;"),
        NftChain("prerouting", publish, "type nat hook prerouting priority dstnat; policy accept;"),
        NftChain("output", publish, "type nat hook output priority -100; policy accept;"),
        NftChain(
            "postrouting",
            (
                "ip saddr . ip daddr @hairpin ct status dnat masquerade",
                'ip saddr 127.0.0.0/8 oifname "pl-e*" masquerade',
                'ip saddr @pools ip daddr != @pools oifname != "pl-*" masquerade',
            ),
            "type nat hook postrouting priority srcnat; policy accept;",
        ),
        NftChain("forward", tuple(forward), "type filter hook forward priority filter; policy accept;"),
    ]


def _hooks() -> list[KernelObject]:
    rules = ('iifname "pl-*" oifname != "br-*" accept', 'oifname "pl-*" accept')
    return [HookRule("ip", "filter", "DOCKER-USER", rule) for rule in rules]


def port_text(port: PortMapping) -> str:
    """How people write a published port: `127.0.0.1:8080->80/tcp`."""
    return f"{port.host_ip}:{port.host_port}->{port.container_port}/{port.proto}"
