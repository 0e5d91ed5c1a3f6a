# SPDX-License-Identifier: Apache-2.0
"""Published ports of other hosts: which of them lead straight to the container, what that costs, and whom it concerns."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.model.cluster import Endpoint, PortMapping, Snapshot
from plait.model.flows import Flow
from plait.model.objects import NftChain, NftSet, Plan
from plait.model.policy import Group, Policy, PolicyRule, Requirement, Selector
from plait.model.service import Service, ServicePort
from plait.model.shortcut import Delivery
from plait.plan import Local, plan_node
from plait.plan.elsewhere import led
from plait.reconcile import diff, order

A, A6 = IPv4Address, IPv6Address
WEB, CLIENT = endpoint(3, "B", "default", {"app": "web"}), endpoint(1, "A", "default", {"app": "client"})
"""The one publishes port 8003 of its host B, the other is a neighbour on A."""
PLACE, TARGET = "198.51.100.2 . tcp . 8003", f"{WEB.address} . 80"
LOCAL = Local(fast_path=True, shortcut="eth0", underlay="eth0", links=frozenset({"eth0"}))


def about(app: str) -> Group:
    return Group(Selector((Requirement("app", "In", (app,)),)), namespace="default")


HEARS = Policy("p", "default", "NetworkPolicy", about("web"), (PolicyRule("Accept", "ingress[0]", (about("client"),)),))
SENDS = Policy("p", "default", "NetworkPolicy", about("client"), egress=(PolicyRule("Accept", "egress[0]", (about("web"),)),))


def cluster(*endpoints: Endpoint, policy: Policy | None = HEARS) -> Snapshot:
    policies = {policy.ident: policy} if policy is not None else {}
    return Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS, BLOCKS, {e.id: e for e in (CLIENT, *endpoints)}, policies=policies)


def planned(snapshot: Snapshot) -> Plan:
    return plan_node(snapshot, LOCAL)


def leads(plan: Plan) -> set[str]:
    found = [one for one in plan.values() if isinstance(one, NftSet) and one.name.startswith("elsewhere_") and one.kind == "map"]
    return {element for one in found for element in one.elements}


@pytest.mark.parametrize("policy", [HEARS, SENDS], ids=["who hears", "who sends"])
def test_a_port_leads_to_its_container_where_a_policy_decides(policy: Policy) -> None:
    plan = planned(cluster(WEB, policy=policy))
    assert leads(plan) == {f"{PLACE} : {TARGET}"}
    tracked = plan["nft", "set", "elsewhere_ends"]
    assert isinstance(tracked, NftSet) and tracked.elements == {f"{WEB.address} . tcp . 80"}
    assert not any(isinstance(one, Delivery) for one in plan.values())


@pytest.mark.parametrize(
    ("who", "policy"),
    [
        (WEB, None),
        (WEB, replace(HEARS, subject=about("other"))),
        (WEB, replace(HEARS, audit=True)),
        (replace(WEB, ports=(replace(WEB.ports[0], sources=(IPv4Network("192.0.2.0/24"),)),)), HEARS),
        (replace(WEB, ports=(replace(WEB.ports[0], host_ip=A("127.0.0.1")),)), HEARS),
        (replace(WEB, ports=()), HEARS),
        (replace(WEB, node="A"), HEARS),
        (replace(WEB, node="gone"), HEARS),
    ],
    ids=["no policy", "of nobody", "to audit", "for some clients", "for its host", "nothing published", "of this host", "of no host"],
)
def test_all_else_is_left_to_the_other_host_and_keeps_the_quick_ways(who: Endpoint, policy: Policy | None) -> None:
    plan = planned(cluster(who, policy=policy))
    assert not [key for key in plan if "elsewhere" in " ".join(key)]
    assert any(isinstance(one, Delivery) and one.link == CLIENT.dev for one in plan.values())


def telling(snapshot: Snapshot, **further: tuple[str, ...]) -> Snapshot:
    """Nodes that have these addresses besides."""
    nodes = {name: replace(node, further=tuple(map(ip_address, further.get(name, ())))) for name, node in NODES.items()}
    return replace(snapshot, nodes=nodes)


def test_at_addresses_that_the_host_tells_and_no_other() -> None:
    hosts = "198.51.100.2", "203.0.113.2", "203.0.113.3"
    ports = tuple(PortMapping("udp", port, 53, A(host)) for port, host in enumerate(hosts, 53))
    everywhere = PortMapping("udp", 5353, 5353)
    snapshot = cluster(replace(WEB, ports=(*ports, everywhere)))
    assert leads(planned(telling(snapshot, B=("203.0.113.2", "2001:db8::2")))) == {
        f"198.51.100.2 . udp . 53 : {WEB.address} . 53",
        f"203.0.113.2 . udp . 54 : {WEB.address} . 53",
        f"198.51.100.2 . udp . 5353 : {WEB.address} . 5353",
        f"203.0.113.2 . udp . 5353 : {WEB.address} . 5353",
    }


@pytest.mark.parametrize("node", ["A", "C"], ids=["this host", "a third one"])
@pytest.mark.parametrize("known", [False, True])
def test_what_another_host_says_it_has_too_means_neither(node: str, known: bool) -> None:
    snapshot = telling(cluster(WEB), A=("203.0.113.2",) if node == "A" and not known else (), B=("203.0.113.2",))
    third = replace(NODES["B"], name="C", id="C", address=A("198.51.100.3"), tunnel=A("10.28.3.0"), further=(A("203.0.113.2"),))
    nodes = {**snapshot.nodes, "C": third} if node == "C" else snapshot.nodes
    if known:
        nodes = {**nodes, node: replace(nodes[node], address=A("203.0.113.2"), further=())} if node in nodes else nodes
    assert leads(planned(replace(snapshot, nodes=nodes))) == {f"{PLACE} : {TARGET}"}


@pytest.mark.parametrize(
    ("further", "sources", "is_led"),
    [
        ((), ("198.51.100.1/32",), True),
        ((), ("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"), True),
        ((), ("198.51.100.2/32", "10.28.0.0/16"), False),
        (("198.51.100.77",), ("198.51.100.1/32",), False),
        (("198.51.100.77",), ("198.51.100.1/32", "198.51.100.64/26"), True),
    ],
    ids=["it alone", "it too", "others", "by one address", "by both"],
)
def test_one_for_some_clients_leads_from_a_host_among_them(further: tuple[str, ...], sources: tuple[str, ...], is_led: bool) -> None:
    port = replace(WEB.ports[0], sources=tuple(map(ip_network, sources)))
    plan = planned(telling(cluster(replace(WEB, ports=(port,))), A=further))
    assert leads(plan) == ({f"{PLACE} : {TARGET}"} if is_led else set())


SIX = replace(endpoint(3, "B", "six", {"app": "web"}), ports=(PortMapping("tcp", 8003, 80), PortMapping("udp", 53, 53, A6("::"))))


def test_by_each_family_that_the_network_and_the_host_have() -> None:
    plan = planned(telling(cluster(SIX), A=("2001:db8::1",), B=("2001:db8::2",)))
    assert leads(plan) == {
        f"{PLACE} : {SIX.address} . 80",
        f"2001:db8::2 . tcp . 8003 : {SIX.address6} . 80",
        f"2001:db8::2 . udp . 53 : {SIX.address6} . 53",
    }
    chain, tracked = plan["nft", "chain", "elsewhere"], plan["nft", "set", "elsewhere_ends6"]
    assert isinstance(chain, NftChain) and [rule.split()[:3] for rule in chain.rules] == [
        ["ip", "saddr", "10.29.0.0/16"],
        ["ip6", "saddr", "fd00:29::/64"],
    ]
    assert isinstance(tracked, NftSet) and tracked.elements == {f"{SIX.address6} . tcp . 80", f"{SIX.address6} . udp . 53"}


def test_ports_of_services_are_asked_for_at_each_of_them_too() -> None:
    port = ServicePort("tcp", 80, 80, published=9000)
    service = Service("web", "default", A("10.27.0.9"), (port,), {"app": "web"}, network="six")
    snapshot = replace(telling(cluster(SIX), A=("2001:db8::1",), B=("203.0.113.2", "2001:db8::2")), services={service.ident: service})
    plan = plan_node(snapshot, replace(LOCAL, draws=True))
    nodes = [plan["nft", "set", name] for name in ("vip_nodes", "vip_nodes6")]
    assert [one.elements for one in nodes if isinstance(one, NftSet)] == [{"198.51.100.2", "203.0.113.2"}, {"2001:db8::2"}]


def test_networks_of_one_host_have_none() -> None:
    snapshot = cluster(WEB)
    alone = replace(NETWORKS["default"], backend="bridge")
    assert not leads(planned(replace(snapshot, networks={**NETWORKS, "default": alone})))


DNS = replace(WEB, ports=(PortMapping("udp", 53, 5353),))
MOVED = replace(DNS, id="e9", dev="pl-e9", address=A("10.28.2.99"))


@pytest.mark.parametrize(
    ("before", "after"), [((DNS,), ()), ((DNS,), (MOVED,)), ((), (DNS,)), ((DNS,), (DNS,))], ids=["ends", "moves", "begins", "stays"]
)
def test_datagrams_that_would_be_led_elsewhere_now_are_a_new_flow(before: tuple[Endpoint, ...], after: tuple[Endpoint, ...]) -> None:
    was, now = planned(cluster(*before)), planned(cluster(*after))
    rules = led(order(diff(now, was, True)), now)
    host, neighbour, stranger = A("198.51.100.2"), A("10.28.1.7"), A("10.29.1.7")
    past = {t: any(rule.stale(Flow("udp", neighbour, host, 53, t), set()) for rule in rules) for t in (None, (DNS.address, 5353))}
    assert past == {None: bool(after) and before != after, (DNS.address, 5353): bool(before) and before != after}
    assert not any(rule.stale(Flow("udp", stranger, host, 53, None), set()) for rule in rules)


def test_connections_stay_where_they_are() -> None:
    was, now = planned(cluster(WEB)), planned(cluster(WEB, policy=None))
    assert led(order(diff(now, was, True)), now) == led(order(diff(was, now, True)), was) == []
