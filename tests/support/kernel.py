# SPDX-License-Identifier: Apache-2.0
"""A plan with every kind of object, and the real kernel in a namespace that the test makes for itself and that leads nowhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

from plait.kernel.api import Kernel
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.model.hostlinks import guard_of
from plait.model.objects import (
    PORT_FLAGS,
    Addr,
    BridgeFdb,
    BridgeLink,
    EndpointLink,
    Fdb,
    Flood,
    HookRule,
    KernelObject,
    Neigh,
    NftChain,
    NftSet,
    Plan,
    Route,
    Sysctl,
    VxlanLink,
)
from plait.model.routing import MAIN_TABLE, Rule
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import IfbLink, PortClass, PortQueues, Redirect, Tbf
from plait.reconcile import diff, order

A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network
VXLAN = VxlanLink("pl-x1", 7, 4789, A("198.18.0.1"), "02:00:00:00:00:01", 1450)
SWITCH = BridgeLink("pl-b2", "02:00:00:00:00:31", 1450, querier=True)
SWITCHED = VxlanLink(
    "pl-x3", 9, 4789, A("198.18.0.1"), SWITCH.mac, 1450, master="pl-b2", switching=frozenset(PORT_FLAGS) - {"learning", "flood"}
)
PORT_QUEUES = PortQueues(
    "pl-i2",
    (
        PortClass(1, 1_309_013, 1_309_013, 16 << 10, 0),
        PortClass(2, 436_337, 1_309_013, 16 << 10, 80 << 10),
        PortClass(0x11, 436_337, 1_000_001, 16 << 10, 70_000),
    ),
)
OBJECTS: tuple[KernelObject, ...] = (
    VXLAN,
    BridgeLink("pl-gw", "02:00:00:00:00:aa"),
    EndpointLink("pl-e1", 1450, peer="pl-p1", mac="02:00:00:00:00:02"),
    BridgeLink("pl-b1", "02:00:00:00:00:bb", 1500),
    EndpointLink("pl-e4", 1500, peer="pl-p4", mac="02:00:00:00:00:04", master="pl-b1", isolated=True),
    Addr("pl-x1", IPv4Interface("10.28.1.0/32")),
    Addr("pl-gw", IPv4Interface("10.28.0.1/32")),
    Sysctl("ipv4/ip_forward", "1"),
    Sysctl("ipv4/conf/pl-e1/route_localnet", "1"),
    Neigh("pl-x1", A("10.28.2.0"), "02:00:00:00:00:03"),
    Fdb("pl-x1", "02:00:00:00:00:03", A("198.18.0.2")),
    Route(N("10.28.2.0/24"), "pl-x1", via=A("10.28.2.0"), onlink=True, src=A("10.28.1.0"), mtu=1400),
    Route(N("10.28.1.2/32"), "pl-e1", scope="link"),
    Route(N("10.28.0.0/16"), kind="unreachable", metric=4278198272),
    NftSet("pools", "ipv4_addr", frozenset({"10.28.0.0/16", "10.29.0.0/16"}), ("interval",)),
    NftSet("same", "ipv4_addr . ipv4_addr", frozenset({f"10.{n}.0.0/16 . 10.{n}.0.0/16" for n in range(28, 48)}), ("interval",)),
    NftSet("empty", "ipv4_addr", frozenset()),
    NftSet(
        "ports",
        "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
        frozenset({"127.0.0.1 . udp . 53 : 10.28.1.2 . 53", "198.18.0.1 . sctp . 9 : 10.28.1.2 . 9"}),
        kind="map",
    ),
    NftChain(
        "in",
        ("ct state established,related accept", "ip saddr . ip daddr @same accept"),
        "type filter hook forward priority filter; policy accept;",
    ),
    NftChain("out", ("dnat ip to ip daddr . meta l4proto . th dport map @ports",), "type nat hook output priority -100; policy accept;"),
    NftChain("plain", ('iifname != "pl-x*" ip daddr @pools drop',)),
    NftSet("here", "ipv4_addr : iface_index", frozenset({'10.28.1.2 : "pl-e1"'}), kind="map", family="netdev"),
    NftSet("next", "ipv4_addr : ipv4_addr", frozenset({"10.28.2.0 : 10.28.2.0"}), kind="map", family="netdev"),
    NftSet("same", "ipv4_addr . ipv4_addr", frozenset({"10.28.0.0/16 . 10.28.0.0/16"}), ("interval",), family="netdev"),
    NftChain(
        "pl-x1",
        ("ip saddr . ip daddr @same ip ttl > 1 fwd ip to ip daddr device ip daddr map @here",),
        'type filter hook ingress device "pl-x1" priority filter; policy accept;',
        "netdev",
    ),
    NftChain(
        "pl-e1",
        (
            "tcp sport 80 accept",
            "ip frag-off & 16383 != 0 accept",
            'ip saddr 10.28.1.2 ip daddr 10.28.0.0/16 ip ttl > 1 fwd ip to ip daddr & 255.255.255.0 map @next device "pl-x1"',
        ),
        'type filter hook ingress device "pl-e1" priority filter; policy accept;',
        "netdev",
    ),
    NftSet("forgers", "iface_index", frozenset(), ("dynamic", "timeout"), family="netdev", bounds=("size 4096",)),
    NftChain("forged", ("update @forgers { iif timeout 1h counter }", "drop"), family="netdev"),
    NftChain(
        "pl-e4",
        (
            "ether saddr != 02:00:00:00:00:04 goto forged",
            "ip saddr != 10.30.0.2 ip saddr != 10.28.1.2 goto forged",
            "ip6 saddr != fd00:30::102 ip6 saddr != fe80::/10 goto forged",
            "arp saddr ip != 10.30.0.2 arp saddr ip != 0.0.0.0 goto forged",
            "ip saddr 0.0.0.0 ip protocol igmp accept",
            "ip6 saddr :: icmpv6 type { mld-listener-report, mld-listener-done, nd-neighbor-solicit, mld2-listener-report } accept",
            "icmpv6 type nd-neighbor-advert ip6 nexthdr != ipv6-icmp goto forged",
            "icmpv6 type nd-neighbor-advert @nh,384,128 != 0xfe8000000000000000000000000000ff goto forged",
        ),
        'type filter hook ingress device "pl-e4" priority filter; policy accept;',
        "netdev",
    ),
    NftSet("policed_in", "ipv4_addr : verdict", frozenset({"10.28.1.2 : jump pi_1", "10.28.1.3 : jump pi_1"}), kind="map"),
    NftSet(
        "pi_1_net",
        "ipv4_addr : verdict",
        frozenset({"0.0.0.0/1 : goto pp_1", "192.0.2.0-192.0.2.6 : drop", "192.0.2.7 : return", "192.0.2.8/29 : goto pp_1"}),
        ("interval",),
        "map",
    ),
    NftSet(
        "pp_1",
        "inet_proto . inet_service : verdict",
        frozenset({"tcp . 80 : return", "tcp . 8000-8100 : return", "udp . 0-65535 : return", "sctp . 0-79 : return"}),
        ("interval",),
        "map",
    ),
    NftSet("policed_in6", "ipv6_addr : verdict", frozenset({"fd00:31::102 : jump pi_1"}), kind="map"),
    NftSet("pi_1_net6", "ipv6_addr : verdict", frozenset({"::/0 : drop"}), ("interval",), "map"),
    NftChain("pi_1", ("ip saddr vmap @pi_1_net", "ip6 saddr vmap @pi_1_net6", "goto pp_1")),
    NftChain("pp_1", ("meta l4proto . th dport vmap @pp_1", "drop")),
    NftChain(
        "policing",
        (
            "ct state established,related accept",
            "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
            "ip daddr vmap @policed_in",
            "ip6 daddr vmap @policed_in6",
        ),
        "type filter hook forward priority filter - 10; policy accept;",
    ),
    NftSet("relayed", "ipv4_addr", frozenset({"10.28.4.0/24", "10.28.9.7"}), ("interval",)),
    NftChain(
        "relay",
        ('iifname "pl-x*" ip daddr @relayed drop', 'iifname "eth0" ip saddr @pools ip daddr @relayed drop'),
        "type filter hook forward priority filter; policy accept;",
    ),
    NftChain(
        "raw_direct",
        ('iifname "eth0" ip saddr 10.28.0.0/16 ip daddr 10.28.0.0/16 notrack accept',),
        "type filter hook prerouting priority raw; policy accept;",
    ),
    Shortcut("lo"),
    Delivery("lo", A("10.28.1.2"), N("10.28.0.0/16"), "pl-e1", A("198.18.0.1"), 1, 4789, "02:00:00:00:00:02"),
    Delivery("lo", A("10.28.1.3"), N("10.28.0.0/16"), "pl-e1", A("198.18.0.1"), 2, 4789, "02:00:00:00:00:03", framed=True),
    HookRule("ip", "filter", "DOCKER-USER", 'oifname "pl-*" accept'),
    HookRule("ip6", "filter", "DOCKER-USER", 'oifname "pl-*" accept'),
    Sysctl("ipv6/conf/all/forwarding", "1"),
    Addr("pl-x1", IPv6Interface("fd11::1/128")),
    Addr("pl-gw", IPv6Interface("fd00:31::1/128")),
    Addr("pl-e1", IPv6Interface("fd00:31::1/128")),
    Neigh("pl-x1", A6("fe80::ff:fe00:3"), "02:00:00:00:00:03"),
    Neigh("pl-e1", A6("fd00:31::102"), "02:00:00:00:00:02"),
    Route(N6("fd00:31::200/120"), "pl-x1", via=A6("fe80::ff:fe00:3"), src=A6("fd11::1"), mtu=1400),
    Route(N6("fd00:31::102/128"), "pl-e1"),
    Route(N6("fd00:31::/64"), kind="unreachable", metric=4278198272),
    NftSet("pools6", "ipv6_addr", frozenset({"fd00:31::/64", "fd00:32::/64"}), ("interval",)),
    NftSet("same6", "ipv6_addr . ipv6_addr", frozenset({"fd00:31::/64 . fd00:31::/64"}), ("interval",)),
    NftSet(
        "ports6",
        "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
        frozenset({"fd11::9 . tcp . 53 : fd00:31::102 . 53"}),
        kind="map",
    ),
    NftChain(
        "six",
        (
            "ip6 saddr . ip6 daddr @same6 accept",
            "ip6 saddr @pools6 ip6 daddr != @pools6 drop",
            "ip6 saddr fd00:31::/64 ip6 daddr fd00:31::/64 notrack accept",
        ),
    ),
    NftChain(
        "in6",
        ("ip6 daddr != ::1 fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6",),
        "type nat hook prerouting priority dstnat; policy accept;",
    ),
    NftSet("here6", "ipv6_addr : iface_index", frozenset({'fd00:31::102 : "pl-e1"'}), kind="map", family="netdev"),
    NftSet("next6", "ipv6_addr : ipv6_addr", frozenset({"fd00:31::200 : fe80::ff:fe00:3"}), kind="map", family="netdev"),
    NftChain(
        "pl-e2",
        (
            "exthdr frag exists accept",
            "ip6 saddr fd00:31::102 ip6 daddr fd00:31::/64 ip6 hoplimit > 1 fwd ip6 to ip6 daddr device ip6 daddr map @here6",
            "ip6 saddr fd00:31::102 ip6 daddr fd00:31::/64 ip6 hoplimit > 1 fwd ip6 to ip6 daddr"
            ' & ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00 map @next6 device "pl-x1"',
        ),
        'type filter hook ingress device "pl-e2" priority filter; policy accept;',
        "netdev",
    ),
    EndpointLink("pl-e2", 1450, peer="pl-p2", mac="02:00:00:00:00:0c"),
    HookRule("ip", "filter", "DOCKER-USER", "ip saddr 10.28.0.0/16 ip daddr 10.28.0.0/16 accept"),
    VxlanLink("pl-x2", 8, 4789, A6("fd99::1"), "02:00:00:00:00:21", 1430),
    Fdb("pl-x2", "02:00:00:00:00:23", A6("fd99::2")),
    SWITCH,
    SWITCHED,
    EndpointLink("pl-e5", 1450, peer="pl-p5", mac="02:00:00:00:00:35", master="pl-b2"),
    Neigh("pl-b2", A("10.33.0.7"), "02:00:00:00:00:37"),
    Neigh("pl-b2", A6("fd00:33::7"), "02:00:00:00:00:37"),
    Fdb("pl-x3", "02:00:00:00:00:37", A("198.18.0.2")),
    BridgeFdb("pl-b2", "02:00:00:00:00:37", "pl-x3"),
    BridgeFdb("pl-b2", "02:00:00:00:00:35", "pl-e5"),
    Flood("pl-x3", A("198.18.0.2")),
    Flood("pl-x3", A("198.18.0.3")),
    IfbLink("pl-i1"),
    IfbLink("pl-i2"),
    Tbf("pl-e1", 1_309_013, 16 << 10, 80 << 10),
    Tbf("pl-i1", 5_000_000_001, 8 << 20, 200 << 20),
    PORT_QUEUES,
    Redirect("pl-e1", "pl-i1"),
    Redirect("pl-e4", "pl-i2"),
    Rule(11200, N("10.28.0.0/16"), MAIN_TABLE, specific=True),
    Rule(11201, N("10.28.0.0/16"), 1_120_001),
    Rule(11201, N("10.29.0.0/16"), 200),
    Rule(11199, N("0.0.0.0/0"), 1_130_007, mark=1_130_007),
    Rule(11199, N("10.28.0.0/16"), 1_130_007, mark=1_130_007),
    Route(N("0.0.0.0/0"), "pl-x1", via=A("10.28.2.0"), onlink=True, src=A("10.28.1.0"), mtu=1400, table=1_130_007),
    Route(N("0.0.0.0/0"), kind="unreachable", table=1_130_008),
    NftSet("egress_nets", "ipv4_addr : mark", frozenset({"10.28.0.0/16 : 0x00113e17"}), ("interval",), "map"),
    NftSet("egress_hosts", "ipv4_addr : mark", frozenset({"10.28.1.2 : 0x00113e18"}), (), "map"),
    NftSet("egress_nets_seen", "ipv4_addr : ipv4_addr", frozenset({"10.28.0.0/16 : 192.0.2.7"}), ("interval",), "map"),
    NftSet("egress_away", "mark", frozenset({"0x00113e17", "0x00113e18"})),
    NftChain(
        "egress",
        ("ip daddr != @pools ip daddr != 10.27.0.0/16 ct direction original meta mark set ip saddr map @egress_nets",),
        "type filter hook prerouting priority dstnat + 1; policy accept;",
    ),
    NftChain("leaving", ('meta mark @egress_away oifname != "pl-*" drop',)),
    NftChain(
        "seen",
        (
            'oifname != "pl-*" ip daddr != @pools snat ip to ip saddr map @egress_nets_seen',
            'iifname "pl-x*" oifname != "pl-*" ip saddr @pools ip daddr != @pools drop',
        ),
        "type nat hook postrouting priority srcnat; policy accept;",
    ),
    Rule(11202, N("10.28.0.0/16"), dst=N("10.200.0.0/16")),
    Rule(11200, N6("fd00:28::/64"), MAIN_TABLE, specific=True),
    Rule(11201, N6("fd00:28::/64"), 1_120_001),
    Rule(11202, N6("fd00:28::/64"), dst=N6("2001:db8:200::/48")),
    NftSet("outside", "ipv4_addr . ipv4_addr", frozenset({"10.28.0.0/16 . 0.0.0.0/1", "10.28.0.0/16 . 128.0.0.0/1"}), ("interval",)),
    NftSet("outside6", "ipv6_addr . ipv6_addr", frozenset({"fd00:28::/64 . ::/1", "fd00:28::/64 . 8000::/1"}), ("interval",)),
    NftChain(
        "reached",
        (
            'iifname != "pl-*" ip saddr != @pools ip daddr . ip saddr @outside accept',
            "ip6 daddr . ip6 saddr @outside6 accept",
        ),
    ),
)
OBJECTS += (guard_of("pl-e1", "02:00:00:00:00:02", (A("10.28.1.2"), A6("fd00:31::102"))),)
PLAN: Plan = {obj.key: obj for obj in OBJECTS}


def converge(kernel: Kernel, plan: Plan) -> int:
    """One pass; the number of operations it took. Fails the test if the kernel refused one."""
    probes = [key for key in plan if key[0] in ("sysctl", "hook")]
    ops = order(diff(plan, kernel.owned(probes), True))
    result = kernel.apply(ops)
    assert not result.failed, result.failed
    return len(ops)


def within(netns: Path, command: str) -> list[str]:
    """What runs a shell's command in that network namespace: all of it, whatever it is put together of. (`nsenter … a && b`, given to a
    shell, runs b outside.)"""
    return ["nsenter", f"--net={netns}", "sh", "-c", command]


def sh(command: str) -> str:
    """What the command prints; a failure shows all that it said."""
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def own_namespace() -> None:
    """The calling thread leaves the machine's network for a new one without any link. Use it in a thread of its own only."""
    unshare_net()
    own, machine = os.stat("/proc/thread-self/ns/net").st_ino, os.stat("/proc/self/ns/net").st_ino
    assert own != machine, "refusing to run in the machine's own namespace"


def make_linux() -> LinuxKernel:
    """The kernel of a new namespace that has an address for tunnels and Docker's hook with a rule of somebody else."""
    own_namespace()
    sh("ip link add eth0 type bridge && ip addr add 198.18.0.1/24 dev eth0 && ip link set eth0 up")
    sh("nft 'add table ip filter; add chain ip filter DOCKER-USER; add rule ip filter DOCKER-USER counter return'")
    sh("nft 'add table ip6 filter; add chain ip6 filter DOCKER-USER; add rule ip6 filter DOCKER-USER counter return'")
    return LinuxKernel()


def in_namespace(body: Callable[[LinuxKernel], None]) -> None:
    """Run `body` with the kernel of a namespace that ends with it."""

    def work() -> None:
        kernel = make_linux()
        try:
            body(kernel)
        finally:
            kernel.close()

    in_thread(work)
