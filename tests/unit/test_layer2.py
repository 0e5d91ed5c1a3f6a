# SPDX-License-Identifier: Apache-2.0
"""Networks of layer 2 as a plan: whose rows there are, which MTU, which path, and what the fast path has to do with them (nothing)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network

import pytest

from plait.agent.lanes import Lanes, lanes
from plait.agent.paths import Paths
from plait.backends import backend_of
from plait.kernel.linux.announce import announcement
from plait.model.addr import link_local
from plait.model.cluster import Block, Endpoint, Network, Node, PortMapping, Reach, Snapshot
from plait.model.objects import (
    Addr,
    BridgeFdb,
    BridgeLink,
    EndpointLink,
    Fdb,
    Flood,
    KernelObject,
    Neigh,
    NftChain,
    Plan,
    Sysctl,
    VxlanLink,
)
from plait.plan import Local, choose, member, network_mtu, plan_node

A, N = IPv4Address, IPv4Network
DEFAULT = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
FLAT = Network("flat", N("10.66.0.0/24"), A("10.66.0.1"), 28, vni=2, options={"layer2": "true"})
LOUD = replace(FLAT, options={"layer2": "true", "multicast": "true"})
DUAL = replace(LOUD, subnet6=IPv6Network("fd00:66::/64"), gateway6=IPv6Address("fd00:66::1"))
NODES = {
    name: Node(name, f"id-{name}", A(f"192.0.2.{n}"), 1500, f"02:00:00:00:00:0{n}", A(f"10.28.{n}.0")) for n, name in enumerate("ABC", 1)
}
BRIDGE = backend_of(FLAT).bridge(FLAT)


def endpoint(name: str, node: str, last: int, ports: tuple[PortMapping, ...] = ()) -> Endpoint:
    where = {"address": A(f"10.66.0.{last}"), "address6": IPv6Address(f"fd00:66::{last:x}")}
    return Endpoint(f"e-{name}", "flat", node, mac=f"02:00:00:00:66:{last:02x}", dev=f"pl-e{name}", runtime="sandbox", ports=ports, **where)  # type: ignore[arg-type]


OWN, NEAR, FAR = endpoint("own", "A", 2), endpoint("near", "B", 17), endpoint("far", "C", 33)


def cluster(network: Network, *endpoints: Endpoint, me: str = "A", **changed: object) -> Snapshot:
    blocks = [Block("flat", N(f"10.66.0.{16 * n}/28"), name) for n, name in enumerate("ABC")]
    found = replace(Snapshot(me, 1, NODES, frozenset("ABC"), {"default": DEFAULT, "flat": network}), **changed)  # type: ignore[arg-type]
    endpoints_by_id = {e.id: e if network.subnet6 is not None else replace(e, address6=None) for e in endpoints}
    return replace(found, blocks={(b.network, b.cidr): b for b in blocks}, endpoints=endpoints_by_id)


def planned(snapshot: Snapshot, local: Local | None = None) -> Plan:
    return plan_node(snapshot, local or Local())


def of(plan: Plan, *kinds: type[KernelObject], dev: str = "") -> set[KernelObject]:
    return {obj for obj in plan.values() if isinstance(obj, kinds) and (not dev or dev in obj.key)}


def test_each_endpoint_of_others_has_its_rows_and_a_host_without_any_is_flooded_to_by_nobody() -> None:
    plan = planned(cluster(LOUD, OWN, NEAR))
    hosts = {Fdb("pl-x2", NODES[name].vtep_mac, NODES[name].address) for name in "BC"}
    assert of(plan, Fdb, dev="pl-x2") == hosts | {Fdb("pl-x2", NEAR.mac, NODES["B"].address)}
    rows = {BridgeFdb(BRIDGE, mac, "pl-x2") for mac in (NEAR.mac, *(NODES[name].vtep_mac for name in "BC"))}
    assert of(plan, BridgeFdb) == rows | {BridgeFdb(BRIDGE, OWN.mac, OWN.dev)}
    assert of(plan, Flood) == {Flood("pl-x2", NODES["B"].address)}
    assert {Neigh(BRIDGE, NEAR.address, NEAR.mac), Neigh(BRIDGE, OWN.address, OWN.mac)} <= of(plan, Neigh)
    assert of(planned(cluster(FLAT, OWN, NEAR)), Flood) == set(), "nor where multicast was not asked for"


def test_the_tunnel_is_a_silent_port_and_its_host_is_known_by_the_bridge() -> None:
    for network, flags in ((FLAT, {"neigh_suppress"}), (LOUD, {"neigh_suppress", "mcast_flood", "bcast_flood", "mcast_router"})):
        plan = planned(cluster(network))
        link = plan["link", "pl-x2"]
        assert isinstance(link, VxlanLink) and (link.master, link.switching) == (BRIDGE, frozenset(flags))
        assert plan["link", BRIDGE] == BridgeLink(BRIDGE, NODES["A"].vtep_mac, 1450, querier=network.multicast)
        assert not of(plan, Addr, Neigh, dev="pl-x2"), "a port has no addresses"


def test_a_node_without_a_tunnel_yet_has_the_bridge_alone() -> None:
    plan = planned(cluster(LOUD, OWN, NEAR, nodes={**NODES, "A": replace(NODES["A"], tunnel=None)}))
    assert ("link", BRIDGE) in plan and of(plan, BridgeFdb, Fdb, Flood) == {BridgeFdb(BRIDGE, OWN.mac, OWN.dev)}


def test_ipv6_is_on_the_link_too_and_link_local_addresses_are_known() -> None:
    plan = planned(cluster(DUAL, OWN, NEAR))
    for one in (OWN, NEAR):
        assert one.address6 is not None
        assert {Neigh(BRIDGE, one.address6, one.mac), Neigh(BRIDGE, link_local(one.mac), one.mac)} <= of(plan, Neigh)
    assert Sysctl(f"ipv6/conf/{BRIDGE}/disable_ipv6", "0") in of(plan, Sysctl)
    link = plan["link", OWN.dev]
    assert isinstance(link, EndpointLink) and link.inside6 is not None and link.inside6.on_link


ASKS = "arp operation request", "icmpv6 type nd-neighbor-solicit"


@pytest.mark.parametrize(("network", "asks"), [(FLAT, ASKS[:1]), (DUAL, ASKS)], ids=["v4", "dual"])
def test_what_an_endpoint_asks_is_asked_of_everybody(network: Network, asks: tuple[str, ...]) -> None:
    chain = planned(cluster(network, OWN))["nft", "chain", OWN.dev, "netdev"]
    assert isinstance(chain, NftChain) and len([rule for rule in chain.rules if " set " in rule]) == len(asks)
    assert chain.rules[-len(asks) :] == tuple(f"{what} ether daddr set ff:ff:ff:ff:ff:ff" for what in asks)


def test_frames_take_the_fast_path_by_their_macs() -> None:
    here, there = f'{OWN.mac} : "{OWN.dev}"', {NEAR.mac, NODES["B"].vtep_mac, NODES["C"].vtep_mac}
    plan = planned(cluster(FLAT, OWN, NEAR), Local(fast_path=True))
    assert plan["nft", "map", "frames_here2", "netdev"].elements == {here}  # type: ignore[union-attr]
    assert plan["nft", "set", "frames_there2", "netdev"].elements == there  # type: ignore[union-attr]
    onward = 'ether daddr @frames_there2 fwd to "pl-x2"', "fwd to ether daddr map @frames_here2"
    assert plan["nft", "chain", OWN.dev, "netdev"].rules[-2:] == onward  # type: ignore[union-attr]
    assert plan["nft", "chain", "pl-x2", "netdev"].rules == onward[1:]  # type: ignore[union-attr]


@pytest.mark.parametrize("fast_path", [False, True])
def test_isolated_ports_and_slow_kernels_have_no_such_frames(fast_path: bool) -> None:
    network = replace(FLAT, options={**FLAT.options, "isolated": "true"}) if fast_path else FLAT
    plan = planned(cluster(network, OWN, NEAR), Local(fast_path=fast_path))
    assert not [key for key in plan if "frames_" in str(key)] and ("nft", "chain", "pl-x2", "netdev") not in plan
    assert not any("fwd" in rule for rule in plan["nft", "chain", OWN.dev, "netdev"].rules)  # type: ignore[union-attr]


def test_all_containers_have_the_mtu_of_the_narrowest_host() -> None:
    nodes = {**NODES, "C": replace(NODES["C"], mtu=1400)}
    snapshot = cluster(FLAT, OWN, nodes=nodes)
    assert network_mtu(member(snapshot, FLAT), FLAT) == 1350 and network_mtu(member(snapshot, DEFAULT), DEFAULT) == 1450
    plan = planned(snapshot)
    assert {plan["link", name].mtu for name in ("pl-x2", BRIDGE, OWN.dev)} == {1350}  # type: ignore[union-attr]
    assert plan["link", "pl-x1"].mtu == 1450  # type: ignore[union-attr]


@pytest.mark.parametrize("first", ["e-a", "e-z"])
def test_of_two_with_one_address_the_rightful_one_is_known(first: str) -> None:
    """Both took it while nobody could tell them; the holder of the block is B."""
    stray = replace(NEAR, id=first, node="C", mac="02:00:00:00:66:ff")
    plan = planned(cluster(FLAT, OWN, NEAR, stray))
    assert plan["neigh", BRIDGE, str(NEAR.address)] == Neigh(BRIDGE, NEAR.address, NEAR.mac)
    alone = planned(cluster(FLAT, OWN, stray))
    assert alone["neigh", BRIDGE, str(NEAR.address)] == Neigh(BRIDGE, NEAR.address, stray.mac)


def test_a_host_that_is_exposed_is_at_the_mac_of_its_bridge() -> None:
    host = replace(endpoint("host", "B", 18), runtime="host")
    plan = planned(cluster(FLAT, OWN, host))
    assert plan["neigh", BRIDGE, str(host.address)] == Neigh(BRIDGE, host.address, NODES["B"].vtep_mac)
    assert host.mac not in str(of(plan, Fdb, BridgeFdb))
    assert Addr(BRIDGE, IPv4Interface(host.address)) in of(planned(cluster(FLAT, host, me="B")), Addr)


def test_frames_go_through_the_tunnel_or_not_at_all() -> None:
    reach = {"A": Reach("A", ("B",), {BRIDGE: ("B",), "pl-x1": ("B",)}), "B": Reach("B", ("A",), {BRIDGE: ("A",), "pl-x1": ("A",)})}
    snapshot = cluster(FLAT, reach=reach)
    found = {network.name: choose(snapshot, network)["B"] for network in (DEFAULT, FLAT)}
    assert found["default"] is not None and found["default"].works and found["default"].kind == "direct"
    assert found["flat"] is not None and not found["flat"].works and found["flat"].relay is None
    assert (whole := choose(cluster(FLAT), FLAT)["B"]) is not None and whole.why == "frames go through the tunnel alone"
    paths = Paths(Lanes(lambda: snapshot, lambda _: None), dict, lambda: 0.0)
    paths.observe(snapshot)
    assert paths.troubles()[1] == {"B": "no packet of network flat comes to B; frames are not relayed"}
    assert BRIDGE in {device for _, device in lanes(snapshot)}, "it is probed where the host has an address"


def test_a_tunnel_that_garbles_checksums_computes_them_in_software() -> None:
    link = planned(cluster(FLAT), Local(software_checksums=frozenset({BRIDGE})))["link", "pl-x2"]
    assert isinstance(link, VxlanLink) and not link.tx_checksum


def test_strict_hosts_are_loose_on_the_bridge() -> None:
    assert Sysctl(f"ipv4/conf/{BRIDGE}/rp_filter", "2") in planned(cluster(FLAT), Local(strict=True)).values()


def test_an_announcement_is_a_gratuitous_arp_or_an_unsolicited_advertisement() -> None:
    mac = bytes.fromhex("020000006611")
    arp = announcement(A("10.66.0.17"), mac)
    assert arp.hex() == "ffffffffffff0200000066110806" + "0001080006040001" + "0200000066110a420011" + "0000000000000a420011"
    advertisement = announcement(IPv6Address("fd00:66::11"), mac)
    assert advertisement[:14].hex() == "33330000000102000000661186dd" and advertisement[21] == 255
    body = advertisement[54:]
    assert (body[0], body[4]) == (136, 0x20) and body[8:24] == IPv6Address("fd00:66::11").packed and body[24:] == b"\x02\x01" + mac
    total = sum(
        int.from_bytes((advertisement[22:54] + bytes((0, 0, 0, len(body), 0, 0, 0, 58)) + body)[i : i + 2]) for i in range(0, 72, 2)
    )
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF, "the checksum of RFC 4443, section 2.3"
