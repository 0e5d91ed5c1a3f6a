# SPDX-License-Identifier: Apache-2.0
"""Plans as the lines one would type. `PLAIT_UPDATE_GOLDEN=1` writes the files anew; look at the difference before committing it."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from plait.kernel.dryrun import render
from plait.model.cluster import Block, Endpoint, Network, Node, PortMapping, Reach, Snapshot, TunnelKey
from plait.model.leases import Leased, Way
from plait.model.limits import Limit, Limits
from plait.model.objects import NftChain, NftSet, Op
from plait.model.routing import RouteTable
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node
from plait.plan.hostlease import HostLease
from plait.policy.kubernetes import read_policies
from plait.reconcile import order
from plait.shaping import Limiting, Means, Uplink

FILES = Path(__file__).parent / "plans"
A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network
V6 = {"subnet6": N6("fd00:31::/64"), "gateway6": A6("fd00:31::1")}
DEFAULT = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
INNER = Network("inner", N("10.29.0.0/16"), A("10.29.0.1"), 24, internal=True)
LOCAL_ONLY = Network("here", N("10.30.0.0/24"), A("10.30.0.1"), 28, backend="none")
DUAL = replace(DEFAULT, name="dual", subnet=N("10.31.0.0/16"), gateway=A("10.31.0.1"), **V6)
DUAL_INNER = Network(
    "shut", N("10.32.0.0/24"), A("10.32.0.1"), 28, internal=True, subnet6=N6("fd00:32::/64"), gateway6=A6("fd00:32::ffff:1")
)


SECRET = Network("secret", N("10.31.0.0/16"), A("10.31.0.1"), 24, backend="wireguard")
HIDDEN = Network("hidden", N("10.32.0.0/16"), A("10.32.0.1"), 24, backend="wireguard", internal=True)


def node(name: str, number: int, mtu: int = 1500) -> Node:
    return Node(name, name.lower() * 8, A(f"198.18.0.{number}"), mtu, f"02:00:00:00:00:0{number}", A(f"10.28.{number}.0"))


def encrypting(name: str, number: int, mtu: int = 1500) -> Node:
    """A node with a tunnel key, whose own address is the first of its block of `hidden`."""
    return replace(node(name, number, mtu), wireguard=TunnelKey(f"{name * 42}A=", 7472, A(f"10.32.{number}.0")))


def blocks(*names: str) -> dict[tuple[str, IPv4Network], Block]:
    made = [Block("default", N(f"10.28.{number}.0/24"), name) for number, name in enumerate(names, 1)]
    return {(b.network, b.cidr): b for b in made}


def encrypted_blocks(*names: str) -> dict[tuple[str, IPv4Network], Block]:
    made = [Block(f"{net}", N(f"10.{second}.{number}.0/24"), name) for number, name in enumerate(names, 1) for net, second in ENCRYPTED]
    return {(b.network, b.cidr): b for b in made}


ENCRYPTED = (("secret", 31), ("hidden", 32))
WEB = Endpoint(
    "e-web",
    "default",
    "A",
    A("10.28.1.2"),
    "02:11:22:33:44:55",
    "pl-e0000000001",
    "sandbox",
    name="web",
    netns="/run/plait/netns/web",
    ports=(PortMapping("tcp", 8080, 80), PortMapping("udp", 5353, 53, A("127.0.0.1"))),
)
ENGINE_WEB = Endpoint("e-dock", "inner", "A", A("10.29.0.2"), "02:11:22:33:44:66", "pl-e0000000002", "docker", name="db")
BOTH = replace(
    WEB,
    id="e-both",
    ports=(PortMapping("tcp", 8090, 80), PortMapping("udp", 5390, 53, A("127.0.0.1"))),
    network="dual",
    address=A("10.31.1.2"),
    address6=A6("fd00:31::102"),
    dev="pl-e0000000003",
)
SHUT = replace(ENGINE_WEB, id="e-shut", network="shut", address=A("10.32.0.2"), address6=A6("fd00:32::2"), dev="pl-e0000000004")
STRAY = replace(SHUT, id="e-stray", node="B", address=A("10.32.0.3"), address6=A6("fd00:32::3"), dev="pl-e0000000005")
ALL = {"A": node("A", 1), "B": node("B", 2), "C": node("C", 3, 1400), "D": node("D", 4)}
CASES = {
    "alone": Snapshot("A", 1, {"A": ALL["A"]}, frozenset("A"), {"default": DEFAULT}, blocks("A")),
    "one-peer": Snapshot("A", 1, {k: ALL[k] for k in "AB"}, frozenset("AB"), {"default": DEFAULT}, blocks("A", "B"), {"e-web": WEB}),
    "three-peers": Snapshot(
        "A",
        1,
        ALL,
        frozenset("ABCD"),
        {n.name: n for n in (DEFAULT, INNER, LOCAL_ONLY)},
        blocks("A", "B", "C", "D"),
        {"e-web": WEB, "e-dock": ENGINE_WEB},
    ),
    "dual": Snapshot(
        "A",
        1,
        {k: ALL[k] for k in "ABC"},
        frozenset("ABC"),
        {n.name: n for n in (DEFAULT, DUAL, DUAL_INNER)},
        blocks("A", "B", "C")
        | {("dual", N(f"10.31.{n}.0/24")): Block("dual", N(f"10.31.{n}.0/24"), name) for n, name in enumerate("ABC", 1)}
        | {("shut", N("10.32.0.0/28")): Block("shut", N("10.32.0.0/28"), "A")},
        {e.id: e for e in (WEB, BOTH, SHUT, STRAY)},
    ),
}

HYBRID = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24, backend="hybrid")
REACH = {
    "A": Reach("A", ("B",), {"pl-x1": ("D",)}),
    "B": Reach("B", ("A",), {"pl-x1": ("D",)}),
    "D": Reach("D", (), {"pl-x1": ("A", "B")}),
}
CASES |= {
    f"{name}-paths": Snapshot(
        "A", 1, ALL, frozenset("ABCD"), {"default": network}, blocks("A", "B", "C", "D"), {"e-web": replace(WEB, ports=())}, reach=REACH
    )
    for name, network in (("hybrid", HYBRID), ("vxlan", DEFAULT), ("direct", replace(HYBRID, backend="direct")))
}
"""B is on A's link, C behind a router; nothing comes through the tunnel to D, which C reaches."""
SWITCHED = Network("here", N("10.30.0.0/24"), A("10.30.0.1"), 28, backend="bridge", options={"isolated": "true"})
CASES["bridge"] = Snapshot(
    "A",
    1,
    {k: ALL[k] for k in "AB"},
    frozenset("AB"),
    {"default": DEFAULT, "here": SWITCHED},
    blocks("A", "B") | {("here", N("10.30.0.0/28")): Block("here", N("10.30.0.0/28"), "A")},
    {"e-web": replace(WEB, network="here", address=A("10.30.0.2"))},
)
LAN = Network("lan", N("192.168.7.0/24"), A("192.168.7.254"), 28, backend="macvlan", options={"parent": "eth1"})
ON_LINKS = {
    "macvlan": LAN,
    "ipvlan": replace(LAN, backend="ipvlan", options={"parent": "eth1", "mode": "l3s"}),
    "vlan": replace(LAN, backend="vlan", options={"parent": "eth1", "vlan": "42", "mode": "private"}),
    "vlan-switch": replace(LAN, backend="vlan", options={"parent": "eth1", "vlan": "42", "switch": "openvswitch"}),
}
_SANDBOX = replace(WEB, id="e-lan", network="lan", address=A("192.168.7.18"), dev="pl-e0000000006", ports=())
ON_LAN = (
    _SANDBOX,
    replace(_SANDBOX, id="e-eng", address=A("192.168.7.19"), dev="pl-e0000000007", netns="", mac="02:11:22:33:44:77"),
    replace(_SANDBOX, id="e-new", address=A("192.168.7.20"), dev="pl-e0000000008", netns="", mac="02:11:22:33:44:88"),
)
CASES |= {
    name: Snapshot(  # a sandbox's container, one of an engine that plait knows the process of, one of an engine still to take it
        "A",
        1,
        {k: ALL[k] for k in "AB"},
        frozenset("AB"),
        {"default": DEFAULT, "lan": network},
        blocks("A", "B") | {("lan", N("192.168.7.16/28")): Block("lan", N("192.168.7.16/28"), "A")},
        {e.id: e if network.backend != "ipvlan" else replace(e, mac="") for e in ON_LAN},
    )
    for name, network in ON_LINKS.items()
}
CASES |= {
    f"{name}-dual": replace(
        CASES[name],
        networks={"default": DEFAULT, "lan": replace(network, subnet6=N6("fd00:7::/64"), gateway6=A6("fd00:7::fe"))},
        endpoints={k: replace(e, address6=A6("fd00:7::") + int(e.address) % 256) for k, e in CASES[name].endpoints.items()},
    )
    for name, network in ON_LINKS.items()
}
BASES = (("quiet", "10.33.0"), ("loud", "10.34.0"))
QUIET = Network("quiet", N("10.33.0.0/24"), A("10.33.0.1"), 28, vni=5, options={"layer2": "true"})
LOUD = Network("loud", N("10.34.0.0/24"), A("10.34.0.1"), 28, vni=6, options={"layer2": "true", "multicast": "true"})
LOUD = replace(LOUD, subnet6=N6("fd00:34::/64"), gateway6=A6("fd00:34::1"))
FAR = Endpoint("e-far", "quiet", "B", A("10.33.0.17"), "02:11:22:33:44:77", "pl-e0000000006", "sandbox")
CASES["layer2"] = Snapshot(  # nobody of `loud` is on C
    "A",
    1,
    {k: ALL[k] for k in "ABC"},
    frozenset("ABC"),
    {n.name: n for n in (DEFAULT, QUIET, LOUD)},
    {(net, N(f"{base}.{16 * n}/28")): Block(net, N(f"{base}.{16 * n}/28"), k) for net, base in BASES for n, k in enumerate("ABC")},
    {
        "e-near": replace(WEB, id="e-near", network="quiet", address=A("10.33.0.2"), ports=()),
        "e-far": FAR,
        "e-farther": replace(FAR, id="e-farther", node="C", address=A("10.33.0.33"), mac="02:11:22:33:44:78"),
        "e-here": replace(ENGINE_WEB, id="e-here", network="loud", address=A("10.34.0.2"), address6=A6("fd00:34::2")),
        "e-there": replace(FAR, id="e-there", network="loud", address=A("10.34.0.17"), address6=A6("fd00:34::11"), mac="02:11:22:33:44:79"),
    },
)
CASES["two-tunnels"] = Snapshot(
    "A",
    1,
    {k: ALL[k] for k in "AB"},
    frozenset("AB"),
    {"default": DEFAULT, "far": replace(INNER, name="far", vni=7, port=8472, internal=False)},
    blocks("A", "B") | {("far", N("10.29.5.0/24")): Block("far", N("10.29.5.0/24"), "B")},
)
CASES["bridge-dual"] = replace(
    CASES["bridge"],
    networks={"default": DEFAULT, "here": replace(SWITCHED, **V6)},
    endpoints={"e-web": replace(WEB, network="here", address=A("10.30.0.2"), address6=A6("fd00:31::2"))},
)
ROUTED = replace(HYBRID, name="routed", subnet=N("10.33.0.0/16"), gateway=A("10.33.0.1"))
HOST_ITSELF = Endpoint("host.A.shut", "shut", "A", A("10.32.0.4"), "02:11:22:33:44:77", "pl-gw", "host", address6=A6("fd00:32::4"))
CASES["exposed"] = replace(  # to the host: one with IPv6, one whose containers are on a bridge, one that plain routes lead to
    CASES["dual"],
    networks={n.name: n for n in (DEFAULT, DUAL_INNER, SWITCHED, ROUTED)},
    blocks=blocks("A", "B")
    | {("shut", N(f"10.32.0.{n}/28")): Block("shut", N(f"10.32.0.{n}/28"), name) for n, name in ((0, "A"), (16, "B"))}
    | {("routed", N("10.33.2.0/24")): Block("routed", N("10.33.2.0/24"), "B")},
    endpoints={
        e.id: e
        for e in (
            SHUT,
            HOST_ITSELF,
            replace(HOST_ITSELF, id="host.A.here", network="here", address=A("10.30.0.3"), address6=None),
            replace(HOST_ITSELF, id="host.A.routed", network="routed", address=A("10.33.1.3"), address6=None),
            replace(HOST_ITSELF, id="host.B.shut", node="B", address=A("10.32.0.20"), address6=A6("fd00:32::14")),
            replace(WEB, network="here", address=A("10.30.0.2"), ports=()),
        )
    },
    reach={"A": Reach("A", ("B",)), "B": Reach("B", ("A",))},
)
ALL_LIMITS = Limits(Limit(512_000, 32_000), None, 9, 50_000, 20, 5, "guaranteed")
CASES["limited"] = replace(  # by labels, both ways; by the engine and in numbers, so that nothing goes straight into it; by its network
    CASES["three-peers"],
    networks={n.name: n for n in (DEFAULT, replace(INNER, options={"limit-out": "100M"}), LOCAL_ONLY)},
    endpoints={
        e.id: e
        for e in (
            replace(WEB, labels={"plait.limit.in": "10M", "plait.limit.out": "1G", "plait.limit.manner": "drop"}, ports=()),
            replace(WEB, id="e-two", address=A("10.28.1.3"), dev="pl-e0000000003", limits=ALL_LIMITS, ports=()),
            ENGINE_WEB,
        )
    },
)
CASES["handed-on"] = replace(  # B is a gateway, and on A's link
    CASES["hybrid-paths"], nodes=ALL | {"B": replace(ALL["B"], meta={"gateway": "true"})}
)
CASES["gateway-on-link"] = CASES["hybrid-paths"]
CASES["lease"] = replace(CASES["bridge"], networks={"default": DEFAULT, "here": replace(SWITCHED, options={"lease": "eth1"})})
_WAYS = (Way(N("10.9.0.0/16"), A("192.168.7.7")), Way(N("0.0.0.0/0"), A("192.168.7.254")))
_LEASED = Leased(25, _WAYS, mtu=1400)
CASES["dhcp"] = replace(  # the last one has lost its lease
    CASES["macvlan"],
    networks={"default": DEFAULT, "lan": replace(LAN, options={"parent": "eth1", "ipam": "dhcp"})},
    blocks=blocks("A", "B"),
    endpoints={e.id: replace(e, leased=replace(_LEASED, lost=e is ON_LAN[2])) for e in ON_LAN},
)
LOCALS = {
    "dhcp": Local(links=frozenset({"eth0", "eth1"}), netns={"e-eng": "/proc/7/ns/net"}),
    "lease": Local(leases={"here": HostLease("eth1", A("192.168.7.19"))}),
    "gateway-on-link": Local(gateway=True, underlay="eth0"),
    "alone": Local(),
    "three-peers": Local(gateway=True, fast_path=True, shortcut="eth0"),
    "hybrid-paths": Local(fast_path=True, underlay="eth0", strict=True),
    **{name: Local(links=frozenset({"eth0", "eth1"}), netns={"e-eng": "/proc/7/ns/net"}, fast_path=True) for name in ON_LINKS},
    "encrypted": Local(fast_path=True, shortcut="eth0"),
    "encrypted-dual": Local(fast_path=True, shortcut="eth0", underlay="eth0", trusting=True, links=frozenset({"eth0", "pl-wg"})),
    "hybrid-dual": Local(fast_path=True, underlay="eth0"),
    "limited": Local(
        fast_path=True,
        shortcut="eth0",
        limiting=Limiting(means=Means.of({"tbf", "ifb", "fwd", "metered", "egress", "ingress", "htb"}), honours=True),
        uplink=Uplink("eth0", 100_000_000),
    ),
    "two-tunnels": Local(fast_path=True, shortcut="eth0", underlay="eth0", software_checksums=frozenset({"pl-x7"})),
}
FOR_SOME = (ip_network("10.0.0.0/9"), ip_network("10.128.0.0/9"), ip_network("192.0.2.7"), ip_network("fd01::/16"))
LIMITED_PORTS = {("dual", "web", "80/tcp"): Limits(Limit(10_000_000, drop=True), Limit(1_000_000_000, drop=True), 9, 8, 7)}
CASES["guarded"] = replace(  # the first for some and limited, the second by NAT as well, the third for some of IPv6 alone; so has the host
    CASES["dual"],
    endpoints={
        "e-both": replace(
            BOTH,
            ports=(
                PortMapping("tcp", 8090, 80, sources=FOR_SOME),
                PortMapping("udp", 5390, 53, A("198.18.0.1"), sources=FOR_SOME, hidden=True),
                PortMapping("sctp", 8091, 81, A6("::"), told=True, sources=FOR_SOME[-1:]),
            ),
        )
    },
)
LOCALS["guarded"] = Local(
    fast_path=True,
    limiting=Limiting(means=Means.of({"metered"}), ports=LIMITED_PORTS),
    clients=(ip_network("10.0.0.0/8"), ip_network("198.18.0.0/24")),
)
CASES["queued"] = replace(CASES["dual"], endpoints={"e-both": BOTH})  # one port both ways, the other one way; the container one way
LOCALS["queued"] = Local(
    fast_path=True,
    limiting=Limiting(
        {("dual", "web"): Limits(Limit(50_000_000))},
        Means.of({"tbf", "ifb", "fwd", "metered", "htb"}),
        {("dual", "web", "80/tcp"): Limits(Limit(10_000_000), Limit(20_000_000)), ("dual", "web", "53/udp"): Limits(Limit(5_000_000))},
    ),
)
CASES["encrypted"] = Snapshot(  # D cannot encrypt, C has a narrower link
    "A",
    1,
    {"A": encrypting("A", 1), "B": encrypting("B", 2), "C": encrypting("C", 3, 1400), "D": ALL["D"]},
    frozenset("ABCD"),
    {n.name: n for n in (DEFAULT, SECRET, HIDDEN)},
    blocks("A", "B", "C", "D") | encrypted_blocks("A", "B", "C", "D"),
    {"e-vault": replace(WEB, id="e-vault", network="secret", address=A("10.31.1.1"), name="vault", ports=())},
)
HIDDEN_NODES = {n: replace(encrypting(n, i), wireguard=TunnelKey(f"{n * 42}A=", 7472, nat=n in "AC")) for i, n in enumerate("ABC", 1)}
CASES["behind-nat"] = Snapshot(  # A and C, which B carries for, are behind address translation; nothing comes through pl-x1 either
    "A",
    1,
    HIDDEN_NODES,
    frozenset("ABC"),
    {n.name: n for n in (DEFAULT, SECRET)},
    blocks("A", "B", "C") | encrypted_blocks("A", "B", "C"),
    reach={"A": Reach("A", (), {"pl-x1": ("C",)}), "C": Reach("C", (), {"pl-x1": ("A",)})},
)


SIXES = {k: replace(n, address=A6(f"2001:2::{i}")) for i, (k, n) in enumerate(ALL.items(), 1)}
CASES["underlay6"] = replace(CASES["one-peer"], nodes={"A": SIXES["A"], "B": SIXES["B"], "C": ALL["C"]}, alive=frozenset("ABC"))
LINKED = {k: replace(n, link6=A6(f"fe80::{i}")) for i, (k, n) in enumerate(ALL.items(), 1)}
BOTH_WAYS = {
    "A": Reach("A", ("B",), {"pl-x1": ("D",)}, ("B",)),
    "B": Reach("B", ("A",), {"pl-x1": ("D",)}, ("A",)),
    "D": Reach("D", (), {"pl-x1": ("A", "B")}),
}
CASES["hybrid-dual"] = replace(  # as in hybrid-paths, and a packet to C is too large for IPv6 if one believes the link
    CASES["hybrid-paths"],
    nodes=LINKED | {"C": replace(LINKED["C"], mtu=1300)},
    networks={"default": replace(HYBRID, **V6)},
    endpoints={"e-web": replace(WEB, address6=A6("fd00:31::102"), ports=())},
    reach=BOTH_WAYS,
)
CASES["direct-underlay6"] = replace(
    CASES["hybrid-dual"],
    nodes={k: replace(n, address=SIXES[k].address) for k, n in LINKED.items()},
    networks={"default": replace(HYBRID, backend="direct", **V6)},
)
CASES["encrypted-dual"] = replace(
    CASES["encrypted"],
    networks={n.name: n for n in (DEFAULT, replace(SECRET, **V6), HIDDEN)},
    endpoints={"e-vault": replace(CASES["encrypted"].endpoints["e-vault"], address6=A6("fd00:31::101"))},
)
CASES["outside"] = replace(  # one network in a table, one that takes no part, one with all that there is behind its router
    CASES["three-peers"], networks={n.name: n for n in (DEFAULT, INNER, replace(LOCAL_ONLY, name="all"))}
)
CASES["outside-dual"] = replace(  # a network with IPv6 and one without in tables that may learn prefixes of both families
    CASES["three-peers"], networks={n.name: n for n in (replace(DEFAULT, **V6), replace(LOCAL_ONLY, name="all"))}
)
LOCALS["outside-dual"] = Local(
    tables=(
        RouteTable("red", ("default",), (N("10.200.0.0/16"), N6("2001:db8:200::/48"))),
        RouteTable("all", ("all",), (N("192.0.2.0/24"), N6("::/1"), N6("8000::/1"))),
    )
)
LOCALS["outside"] = Local(
    tables=(
        RouteTable("red", ("default", "inner"), (N("10.200.0.0/16"), N("192.0.2.0/24"))),
        RouteTable("all", ("all",), (N("0.0.0.0/1"), N("128.0.0.0/1"))),
    )
)


POLICIES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}, {port: 8000, endPort: 8100}]}
  - {from: [{ipBlock: {cidr: 192.0.2.0/24}}]}
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24, 192.0.2.8/29]}}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: bad}}}}], protocols: [{udp: {}}]}]
  egress:
  - {action: Accept, to: [{domainNames: ["*.example.org"]}], protocols: [{tcp: {destinationPort: {number: 443}}}]}
  - {action: Deny, to: [{networks: [203.0.113.0/24]}]}
"""
SHOP = Service("shop", "default", A("10.27.0.9"), (ServicePort("tcp", 80, 8080, 9090),), {"app": "shop"})
CASES["services"] = replace(  # two containers, of which the other host's has twice the weight; `calm` has nobody
    CASES["one-peer"],
    endpoints={
        "e-web": replace(WEB, labels={"app": "shop"}, ports=()),
        "e-far": Endpoint(
            "e-far",
            "default",
            "B",
            A("10.28.2.2"),
            "02:11:22:33:44:99",
            "pl-e0000000009",
            "sandbox",
            name="far",
            labels={"app": "shop", "plait.vip.weight": "2"},
        ),
    },
    services={
        SHOP.ident: SHOP,
        ("default", "calm"): Service("calm", "default", A("10.27.0.10"), (ServicePort("udp", 53, 53),), {"app": "calm"}),
    },
)
CASES["services-dual"] = replace(  # two containers, of which the other host's has no IPv6; on the other network there is no service
    CASES["dual"],
    endpoints={
        "e-both": replace(BOTH, ports=(), labels={"app": "shop"}),
        "e-far": replace(BOTH, id="e-far", node="B", address=A("10.31.2.2"), address6=None, ports=(), name="far", labels={"app": "shop"}),
        "e-shut": SHUT,
    },
    services={SHOP.ident: replace(SHOP, network="dual")},
)
CASES["policies"] = replace(  # `web` is selected by both, `near` by the administrator's
    CASES["one-peer"],
    endpoints={
        "e-web": replace(WEB, labels={"app": "web"}),
        "e-near": replace(WEB, id="e-near", address=A("10.28.1.3"), dev="pl-e0000000009", name="near", ports=(), labels={"app": "db"}),
        "e-bad": replace(WEB, id="e-bad", node="B", address=A("10.28.2.9"), name="bad", ports=(), labels={"app": "bad"}),
    },
    policies={policy.ident: policy for policy in read_policies(POLICIES).policies},
    answered={A("203.0.113.7"): frozenset({"www.example.org"}), A("203.0.113.8"): frozenset({"example.org"})},
)


def lines(snapshot: Snapshot, local: Local) -> str:
    ops = order(Op("put", obj) for obj in plan_node(snapshot, local).values())
    return "\n".join(line for op in ops for line in render(op)) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str) -> None:
    text = lines(CASES[name], LOCALS.get(name, Local(fast_path=True, underlay="eth0")))
    path = FILES / f"{name}.txt"
    if os.environ.get("PLAIT_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_what_is_relayed_in_clear_is_stopped_nowhere_on_its_way_through_encrypted_tunnels() -> None:
    """The two kinds of relay side by side: the chain that stops circles names blocks of the clear network and its devices alone."""
    relayed = [line for line in lines(CASES["behind-nat"], Local(underlay="eth0")).splitlines() if "relay" in line]
    assert "nft 'add element inet plait relayed { 10.28.3.0/24 }'" in relayed
    from_where = [line.partition("inet plait relay iifname ")[2].split()[0] for line in relayed if "iifname" in line]
    assert from_where == ['"pl-x*"', '"eth0"'] and not [line for line in relayed if "10.31." in line]


def test_where_a_node_was_heard_from_stays_before_it_knows_that_it_is_behind_nat() -> None:
    """A pass in that moment would take the address away by which the node is reached, and the sign that it is elsewhere with it."""
    own = HIDDEN_NODES["B"].wireguard
    assert own is not None
    nodes = {n: replace(node, wireguard=TunnelKey(f"{n * 42}A=", 7472)) for n, node in HIDDEN_NODES.items()}
    nodes["B"] = replace(nodes["B"], wireguard=replace(own, elsewhere=("A",)))
    text = lines(replace(CASES["behind-nat"], me="B", nodes=nodes), Local())
    assert [line.split("peer ")[1][0] for line in text.splitlines() if " endpoint " in line] == ["C"]


def test_packets_by_way_of_a_node_with_a_narrow_link_are_small_enough_for_it() -> None:
    nodes = HIDDEN_NODES | {"B": replace(HIDDEN_NODES["B"], mtu=1400)}
    text = lines(replace(CASES["behind-nat"], nodes=nodes), Local())
    assert "ip route replace 10.31.3.0/24 dev pl-wg proto 112 scope link mtu 1328" in text


def test_no_rule_names_a_tunnel_that_the_host_has_not_got() -> None:
    """It would be refused, and the whole table with it. What the host has of the way does no harm."""
    text = lines(CASES["encrypted-dual"], Local(fast_path=True, underlay="eth0"))
    assert 'device "pl-wg"' not in text and 'device "pl-x1"' in text
    assert text.count('device "pl-wg"') < lines(CASES["encrypted-dual"], LOCALS["encrypted-dual"]).count('device "pl-wg"')


@pytest.mark.parametrize("network", ["dual", "default"])
def test_where_a_host_or_the_services_network_has_no_ipv6_there_is_nothing_of_it_for_services(network: str) -> None:
    shop = replace(SHOP, network=network)
    text = lines(replace(CASES["services-dual"], services={shop.ident: shop}), Local(fast_path=True, ipv6=network != "dual"))
    assert "vips" in text and not [line for line in text.splitlines() if "vip6" in line or "vips6" in line or "fd55:" in line]


def test_a_kernel_that_cannot_choose_gets_the_plan_without_services() -> None:
    without = replace(CASES["services"], services={})
    assert plan_node(CASES["services"], Local(fast_path=True, draws=False)) == plan_node(without, Local(fast_path=True))


def test_a_kernel_without_ipv6_gets_the_plan_without_it() -> None:
    text = lines(CASES["dual"], Local(fast_path=True, ipv6=False))
    unguarded = "\n".join(line for line in text.splitlines() if "strangers" not in line)  # there are frames of it all the same
    assert "ip6" not in unguarded and "ipv6" not in unguarded and "fd00" not in text
    plain = [replace(n, subnet6=None, gateway6=None) for n in (DEFAULT, DUAL, DUAL_INNER)]
    assert text == lines(replace(CASES["dual"], networks={n.name: n for n in plain}), Local(fast_path=True))


def test_links_too_small_for_ipv6_get_the_plan_without_it() -> None:
    nodes = {**CASES["dual"].nodes, "A": replace(ALL["A"], mtu=1329)}
    text = lines(replace(CASES["dual"], nodes=nodes), Local())
    assert "fd00" not in text and "10.31.1.2" in text
    assert "fd00" in lines(replace(CASES["dual"], nodes={**nodes, "A": replace(ALL["A"], mtu=1330)}), Local())


def test_a_node_that_is_not_in_the_cluster_wants_nothing() -> None:
    assert plan_node(Snapshot("X", 1, ALL, frozenset(), {"default": DEFAULT}), Local()) == {}


@pytest.mark.parametrize("name", ON_LINKS)
def test_a_network_on_a_link_of_the_host_leaves_its_own_routes_and_rules_alone(name: str) -> None:
    """All that there is of it are the links, and what judges them; without the parent there is nothing."""
    bare = lines(replace(CASES[name], networks={"default": DEFAULT}, endpoints={}), LOCALS[name])
    planned = lines(CASES[name], LOCALS[name]).splitlines()
    more = [line for line in planned if line not in bare.splitlines() and ".conf.pl-e" not in line and " netdev plait " not in line]
    assert more and not [line for line in more if line.startswith(("nft ", "sysctl ", "ip route ", "ip addr "))]
    assert lines(CASES[name], replace(LOCALS[name], links=frozenset({"eth0"}))) == bare


def test_equal_input_gives_equal_output_whatever_the_order() -> None:
    snapshot = CASES["three-peers"]
    shuffled = Snapshot(
        "A", 1, dict(reversed(ALL.items())), snapshot.alive, dict(reversed(snapshot.networks.items())), snapshot.blocks, snapshot.endpoints
    )
    assert lines(shuffled, Local()) == lines(snapshot, Local())


def test_the_first_published_port_is_a_matter_of_elements() -> None:
    """The kernel takes milliseconds to replace a chain; that of the container's own link is made with it."""
    snapshot = CASES["three-peers"]
    without = replace(snapshot, endpoints={key: replace(endpoint, ports=()) for key, endpoint in snapshot.endpoints.items()})
    before, after = (plan_node(of, Local(fast_path=True, underlay="eth0")) for of in (without, snapshot))
    changed = [after.get(key) or before[key] for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert [obj for obj in changed if isinstance(obj, NftSet) and obj.name == "ports_any"]
    assert [obj.name for obj in changed if isinstance(obj, NftChain)] == [WEB.dev]


def test_a_mac_never_follows_an_address() -> None:
    from plait.plan.desired import endpoint_mac

    assert endpoint_mac("one") != endpoint_mac("two")
    first = int(endpoint_mac("one")[:2], 16)
    assert first & 0x02 and not first & 0x01, "locally administered, unicast"


def test_a_host_that_lost_its_address_has_nothing_on_a_link_without_a_name() -> None:
    texts = [lines(snapshot, replace(LOCALS.get(name, Local(fast_path=True)), underlay="")) for name, snapshot in CASES.items()]
    assert not [line for text in texts for line in text.splitlines() if '""' in line or "dev  " in line or line.endswith("dev ")]
    assert "pl-x*" in texts[list(CASES).index("behind-nat")], "what others relay is still stopped"
