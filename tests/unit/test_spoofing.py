# SPDX-License-Identifier: Apache-2.0
"""Who is told to forge, who may, and which addresses are a container's own. What packets do is in tests/kernel/test_guard.py."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType

import pytest

from plait.agent.health import Health
from plait.agent.lacks import lacking
from plait.agent.spoofing import CODE, SHOWN_S, Spoofing
from plait.backends import BACKENDS, settle
from plait.model.cluster import Block, Container, Endpoint, Network, Node, Snapshot
from plait.model.errors import ConfigError
from plait.model.hostlinks import BridgePort, ChildGuard, PortGuard, guard_of
from plait.model.objects import NftChain, NftSet
from plait.model.spoofing import LABEL, OPTION, check_spoofing, may_spoof
from plait.plan import Local, plan_node
from plait.plan.guard import CAPABILITY, CHILDREN, DOCKER_BRIDGE, GUARDS, guard_rules, own_addresses

A, N, A6 = IPv4Address, IPv4Network, IPv6Address
NETWORK = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
DUAL = replace(NETWORK, name="dual", subnet=N("10.29.0.0/16"), subnet6=IPv6Network("fd00:29::/64"), gateway6=A6("fd00:29::1"))
NODE = Node("A", "a" * 8, A("198.18.0.1"), 1500, "02:00:00:00:00:01", A("10.28.1.0"))
WEB = Endpoint("e-web", "default", "A", A("10.28.1.2"), "02:00:00:00:00:02", "pl-eweb", "docker", "c1", "web")
BESIDE = replace(WEB, id="e-web2", network="dual", address=A("10.29.1.2"), address6=A6("fd00:29::102"), dev="pl-eweb2")
OTHER = replace(WEB, id="e-other", container="c2", name="other", address=A("10.28.1.3"), dev="pl-eother")
ALLOWING = {"default": replace(NETWORK, options={OPTION: "allow"})}
UNNAMED = replace(WEB, id="e-unnamed", container="", name="", address=A("10.28.1.4"), dev="pl-eunnamed")


def cluster(*endpoints: Endpoint, containers: Mapping[str, Container] | None = None, **fields: object) -> Snapshot:
    found = {("A", id_): container for id_, container in (containers or {}).items()}
    networks = {n.name: n for n in (NETWORK, DUAL)}
    made = Snapshot("A", 1, {"A": NODE}, frozenset("A"), networks, endpoints={e.id: e for e in endpoints}, containers=found)
    return replace(made, **fields)  # type: ignore[arg-type]


def test_a_container_has_the_addresses_of_all_its_endpoints_its_own_first() -> None:
    own = own_addresses(cluster(WEB, BESIDE, OTHER, UNNAMED, replace(UNNAMED, id="e-second", address=A("10.28.1.5"))))
    assert own["e-web"] == (A("10.28.1.2"), A("10.29.1.2"), A6("fd00:29::102"))
    assert own["e-web2"] == (A("10.29.1.2"), A6("fd00:29::102"), A("10.28.1.2"))
    assert (own["e-other"], own["e-unnamed"]) == ((A("10.28.1.3"),), (A("10.28.1.4"),)), "who is not named is alone"


def test_what_its_engine_gave_it_is_its_own_too() -> None:
    container = Container("c1", "web", "A", "docker", addresses={"default": A("10.28.9.9")}, elsewhere=(A("172.18.0.2"),))
    assert own_addresses(cluster(WEB, containers={"c1": container}))["e-web"][1:] == (A("10.28.9.9"), A("172.18.0.2"))
    podman = replace(container, runtime="netavark")
    assert own_addresses(cluster(WEB, containers={"c1": podman}))["e-web"] == (WEB.address,), "another engine's has the same id"


def test_what_a_network_has_not_here_is_nobodys() -> None:
    plain = replace(DUAL, subnet6=None, gateway6=None)
    assert own_addresses(cluster(BESIDE, networks={"dual": plain}))["e-web2"] == (BESIDE.address,)


@pytest.mark.parametrize(
    ("label", "option", "may"),
    [("", "", False), ("allow", "", True), ("", "allow", True), ("drop", "allow", False), ("allow", "drop", True), ("nonsense", "", False)],
)
def test_a_containers_own_word_goes_before_its_networks(label: str, option: str, may: bool) -> None:
    labels, options = {LABEL: label} if label else {}, {OPTION: option} if option else {}
    assert may_spoof(labels, options) == may
    rules = guard_rules(replace(NETWORK, options=options), replace(WEB, labels=labels), (WEB.address,))
    assert (rules == ()) == may


def test_another_word_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"plait.spoofing: 'yes' is not possible; drop, or allow for routers"):
        check_spoofing({LABEL: "yes"}, LABEL)
    with pytest.raises(ConfigError, match="spoofing: 'on' is not possible"):
        settle({OPTION: "on"}, BACKENDS.values(), [])
    for backend, more in (("macvlan", {}), ("ipvlan", {}), ("vlan", {"vlan": "42"}), ("vlan", {"vlan": "42", "switch": "openvswitch"})):
        assert settle({OPTION: "allow", "backend": backend, "parent": "eth1", **more}, BACKENDS.values(), []).backend.name == backend


def test_dockers_bridge_is_judged_where_it_is_and_has_a_block() -> None:
    block = Block("default", N("10.28.1.0/24"), "A", "bridge")
    container = Container("c1", "web", "A", "docker", addresses={"default": A("10.28.1.9")})
    snapshot = cluster(BESIDE, containers={"c1": container}, blocks={("default", block.cidr): block})
    plan = plan_node(snapshot, Local(links=frozenset({DOCKER_BRIDGE})))
    chain, bridged = plan["nft", "chain", DOCKER_BRIDGE, "netdev"], plan["nft", "set", "bridged", "netdev"]
    assert isinstance(chain, NftChain) and chain.rules == ("ip saddr @pools ip saddr != 10.28.1.0/24 ip saddr != @bridged goto forged",)
    assert isinstance(bridged, NftSet) and bridged.elements == {"10.29.1.2"}, "who is on it may answer from its other network"
    there = Local(links=frozenset({DOCKER_BRIDGE}))
    allowing = {**snapshot.networks, "default": replace(NETWORK, options={OPTION: "allow"})}
    for no in (
        plan_node(snapshot, Local()),
        plan_node(replace(snapshot, blocks={}), there),
        plan_node(replace(snapshot, networks=allowing), there),
    ):
        assert ("nft", "chain", DOCKER_BRIDGE, "netdev") not in no


ON_BRIDGE = Container("c2", "legacy", "A", "docker", addresses={"default": A("10.28.1.8")}, elsewhere=(A("172.18.0.2"), A6("fd00:d::2")))
PORTS = {"c2": BridgePort("vethl", "02:42:0a:1c:01:08"), "unknown": BridgePort("vethu", "02:42:0a:1c:01:09")}
BLOCK = Block("default", N("10.28.1.0/24"), "A", "bridge")
LINKS = frozenset({DOCKER_BRIDGE, "vethl", "vethu"})


def bridged(container: Container = ON_BRIDGE, **fields: object) -> Snapshot:
    return cluster(containers={container.id: container}, blocks={("default", BLOCK.cidr): BLOCK}, **fields)


def hooked(snapshot: Snapshot, links: frozenset[str] = LINKS) -> dict[str, tuple[str, ...]]:
    """The rules of the chains of links that are not plait's."""
    plan = plan_node(snapshot, Local(links=links, bridged=PORTS))
    return {obj.name: obj.rules for obj in plan.values() if isinstance(obj, NftChain) and "device" in obj.hook}


def test_a_container_on_dockers_bridge_is_judged_at_its_own_link_and_by_all_its_addresses() -> None:
    chains = hooked(bridged())
    assert chains.keys() == {DOCKER_BRIDGE, "vethl"}, "nobody knows the other one's container"
    assert chains["vethl"][:2] == (
        "ether saddr != 02:42:0a:1c:01:08 goto forged",
        "ip saddr != 10.28.1.8 ip saddr != 172.18.0.2 goto strangers",
    )
    assert "ip6 saddr != fd00:d::2 ip6 saddr != fe80::42:aff:fe1c:108" in chains["vethl"][2], "and the link-local one of its MAC alone"
    assert chains["vethl"] == hooked(bridged(replace(ON_BRIDGE, labels={LABEL: "drop"}), networks=ALLOWING))["vethl"]


def test_nothing_is_said_of_links_on_dockers_bridge_that_are_gone_or_whose_container_may_forge() -> None:
    assert hooked(bridged(), frozenset({DOCKER_BRIDGE})).keys() == {DOCKER_BRIDGE}
    assert hooked(bridged(replace(ON_BRIDGE, addresses={}))).keys() == {DOCKER_BRIDGE}, "it has ended"
    assert hooked(bridged(), frozenset({"vethl"})) == hooked(cluster(containers={"c2": ON_BRIDGE})) == {}
    assert hooked(bridged(networks=ALLOWING)) == {}
    free = hooked(bridged(replace(ON_BRIDGE, labels={LABEL: "allow"})))
    assert free == {}, "the bridge hands on what it sends"


def test_a_kernel_that_cannot_guard_gets_no_rule_of_it() -> None:
    plan = plan_node(cluster(WEB), Local(guards=frozenset()))
    assert not [key for key in plan if "netdev" in key]


RACK = Network("rack", N("10.43.0.0/24"), A("10.43.0.254"), 24, "vlan", options={"parent": "br0", "vlan": "42", "switch": "openvswitch"})
ON_RACK = replace(WEB, id="e-rack", network="rack", address=A("10.43.0.2"), dev="pl-erack", netns="/run/ns/rack")


def test_a_port_of_a_switch_is_guarded_by_the_addresses_of_its_container_unless_it_may_forge() -> None:
    def guards(endpoint: Endpoint = ON_RACK, network: Network = RACK, able: bool = True) -> list[PortGuard]:
        snapshot = cluster(endpoint, replace(WEB, container="c1"), networks={"rack": network, "default": NETWORK})
        plan = plan_node(snapshot, Local(links=frozenset({"br0"}), guards=GUARDS if able else frozenset({CAPABILITY})))
        return [obj for obj in plan.values() if isinstance(obj, PortGuard)]

    assert guards() == [guard_of("pl-erack", ON_RACK.mac, (ON_RACK.address, WEB.address))]
    assert guards()[0].own == (ON_RACK.address, WEB.address)
    assert (
        guards(replace(ON_RACK, labels={LABEL: "allow"})) == guards(network=replace(RACK, options={**RACK.options, OPTION: "allow"})) == []
    )
    assert guards(able=False) == []
    lacks = {
        name: set(lacking(cluster(networks=found), {"veth", "nft", "guard"})) for name, found in (("some", {"rack": RACK}), ("none", {}))
    }
    assert lacks == {"some": {"xdp"}, "none": set()}, "which is told where it matters"


LAN = Network("lan", N("198.18.0.0/24"), A("198.18.0.254"), 24, "macvlan", options={"parent": "eth1"})
ON_LAN = replace(WEB, id="e-lan", network="lan", address=A("198.18.0.130"), dev="pl-elan", netns="/run/ns/lan")


def test_a_child_of_a_link_is_guarded_where_it_lies_as_soon_as_that_is_known() -> None:
    def guards(
        endpoint: Endpoint = ON_LAN, able: frozenset[str] = GUARDS, netns: Mapping[str, str] = MappingProxyType({}), network: Network = LAN
    ) -> list[ChildGuard]:
        snapshot = cluster(endpoint, replace(WEB, container="c1"), networks={"lan": network, "default": NETWORK})
        plan = plan_node(snapshot, Local(links=frozenset({"eth1"}), guards=able, netns=netns))
        return [obj for obj in plan.values() if isinstance(obj, ChildGuard)]

    (guard,) = guards()
    assert guard.key == ("child-guard", "pl-elan", "/run/ns/lan")
    assert f"ip saddr != {ON_LAN.address} ip saddr != {WEB.address} goto strangers" in guard.rules, "all that its container has"
    assert guards(replace(ON_LAN, labels={LABEL: "allow"})) == guards(able=frozenset({CAPABILITY})) == []
    engines = replace(ON_LAN, netns="")
    assert guards(engines) == [], "the engine has yet to take it"
    (moved,) = guards(engines, netns={"e-lan": "/proc/7/ns/net"})
    assert moved == replace(guard, netns="/proc/7/ns/net")
    leased = replace(ON_LAN, address6=IPv6Address("fd00:18::9"))
    (six,) = guards(leased, network=replace(LAN, options={**LAN.options, "ipam": "dhcp", "ipam6": "dhcp"}))
    assert any("ip6 saddr != fd00:18::9 " in rule for rule in six.rules), "what a server of the link gave"
    lacks = lacking(cluster(networks={"lan": LAN}), {"macvlan", "nft", "guard"})
    assert lacks.keys() == {"egress"} and "Linux 5.16" in lacks["egress"]


async def test_what_children_of_links_have_dropped_is_counted_with_the_rest() -> None:
    kernel = Counting()
    health = Health(kernel.clock)
    engines = replace(ON_LAN, id="e-two", netns="", dev="pl-etwo", name="two")
    snapshot = cluster(ON_LAN, engines, networks={"lan": LAN})
    spoofing = Spoofing(lambda: snapshot, dict, lambda: {"e-two": "/proc/7/ns/net"}, kernel, health, kernel.clock)
    await spoofing.look()
    assert set(kernel.asked) == {("pl-elan", "/run/ns/lan"), ("pl-etwo", "/proc/7/ns/net")}
    kernel.at_ports = {"pl-etwo": 3}
    await spoofing.look()
    assert [(active.subject, active.text[:9]) for active in health.active()] == [("lan/two", "3 packets")] and spoofing.packets == 3


async def test_what_ports_of_switches_have_dropped_is_counted_with_the_rest() -> None:
    kernel = Counting()
    health = Health(kernel.clock)
    spoofing = Spoofing(lambda: cluster(ON_RACK, networks={"rack": RACK}), dict, dict, kernel, health, kernel.clock)
    await spoofing.look()
    kernel.at_ports = {"pl-erack": 3}
    await spoofing.look()
    assert [(active.subject, active.text[:9]) for active in health.active()] == [("rack/web", "3 packets")] and spoofing.packets == 3
    assert kernel.asked == ["pl-erack"]


async def test_what_is_dropped_in_a_child_and_at_its_parent_is_one_containers() -> None:
    kernel = Counting()
    health = Health(kernel.clock)
    spoofing = Spoofing(lambda: cluster(ON_LAN, networks={"lan": LAN}), dict, dict, kernel, health, kernel.clock)
    await spoofing.look()
    kernel.at_ports, kernel.at_parents, kernel.counted = {"pl-elan": 3}, {ON_LAN.mac: 4, "02:99:99:99:99:99": 1}, {"eth1": 2}
    await spoofing.look()
    found = {active.subject: active.text for active in health.active()}
    assert found.keys() == {"lan/web", "02:99:99:99:99:99", "eth1"} and found["lan/web"].startswith("7 packets")
    assert spoofing.packets == 10
    kernel.at_ports = {}  # the container's table was made anew, its MAC's counter was not
    await spoofing.look()
    assert spoofing.packets == 10


async def test_what_one_has_forged_that_ended_before_it_was_known_is_counted() -> None:
    kernel = Counting()
    health = Health(kernel.clock)
    spoofing = Spoofing(lambda: cluster(networks={"lan": LAN}), dict, dict, kernel, health, kernel.clock)
    await spoofing.look()
    kernel.at_parents = {ON_LAN.mac: 4}
    await spoofing.look()
    assert [active.subject for active in health.active()] == [ON_LAN.mac] and spoofing.packets == 4


def test_the_host_judges_children_at_each_parent_that_is_there() -> None:
    two = replace(LAN, name="two", options={"parent": "eth2"})
    on_two = replace(ON_LAN, id="e-two", network="two", dev="pl-etwo", mac="02:00:00:00:00:22", container="c9")

    def hooks(links: set[str], able: frozenset[str] = GUARDS) -> set[str]:
        plan = plan_node(cluster(ON_LAN, on_two, networks={"lan": LAN, "two": two}), Local(links=frozenset(links), guards=able))
        at = {hook for obj in plan.values() if isinstance(obj, NftChain) for hook in re.findall(r'(\S+ device "eth\d")', obj.hook)}
        assert (("nft", "chain", ON_LAN.dev, "netdev") in plan) == bool(at)
        return at

    assert hooks({"eth1"}) == {'ingress device "eth1"', 'egress device "eth1"'}
    assert hooks({"eth1", "eth2"}) == {f'{way} device "{dev}"' for way in ("ingress", "egress") for dev in ("eth1", "eth2")}
    assert hooks(set()) == hooks({"eth1"}, GUARDS - {CAPABILITY}) == hooks({"eth1"}, GUARDS - {CHILDREN}) == set()


class Counting:
    def __init__(self) -> None:
        self.counted: dict[str, int] = {}
        self.at_ports: dict[str, int] = {}
        self.at_parents: dict[str, int] = {}
        self.asked: Collection[object] = ()
        self.now = 1000.0

    def counted_ports(self, devs: Collection[str]) -> dict[str, int]:
        self.asked = devs
        return self.at_ports

    def counted_children(self, guards: Collection[tuple[str, str]]) -> dict[str, int]:
        self.asked = guards
        return self.at_ports

    def counted_links(self, name: str) -> dict[str, int]:
        return {"forgers": self.counted, "child_forgers": self.at_parents}[name]

    def clock(self) -> float:
        return self.now


async def test_the_condition_names_who_forges_and_how_much_until_it_stops() -> None:
    kernel = Counting()
    health = Health(kernel.clock)
    snapshot = replace(bridged(), endpoints=cluster(WEB, OTHER).endpoints)
    spoofing = Spoofing(lambda: snapshot, lambda: PORTS, dict, kernel, health, kernel.clock)
    kernel.counted = {"pl-eweb": 7}
    await spoofing.look()
    assert health.well and spoofing.packets == 0, "that was before this agent"
    kernel.counted = {"pl-eweb": 10, "docker0": 2, "pl-egone": 1, "vethl": 5, "vethu": 1}
    await spoofing.look()
    found = {active.subject: active.text for active in health.active() if active.condition.code == CODE}
    assert found.keys() == {"default/web", "docker0", "pl-egone", "default/legacy", "vethu"} and spoofing.packets == 12
    assert found["default/legacy"].startswith("5 packets") and found["default/legacy"].endswith("are 10.28.1.8, 02:42:0a:1c:01:08")
    assert found["default/web"].startswith("3 packets") and found["default/web"].endswith("its own are 10.28.1.2, 02:00:00:00:00:02")
    kernel.counted = {"pl-eweb": 4}  # the table was made anew
    kernel.now += SHOWN_S / 2
    await spoofing.look()
    texts = [active.text for active in health.active()]
    assert len(texts) == 1 and texts[0].startswith("7 packets") and spoofing.packets == 16
    assert [reading.value for reading in spoofing.readings()] == [16.0]
    kernel.now += SHOWN_S
    await spoofing.look()
    assert health.well
