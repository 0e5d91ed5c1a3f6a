# SPDX-License-Identifier: Apache-2.0
"""Connections to virtual addresses that are forgotten: those to backends that are gone, and no others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.model.cluster import Snapshot
from plait.model.flows import PortRule
from plait.model.objects import Plan
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node
from plait.plan.vipflows import orphaned
from plait.reconcile import diff, order

A = IPv4Address
VIP = A("10.27.0.9")
SHOP = Service("shop", "default", VIP, (ServicePort("tcp", 80, 8080, 9090), ServicePort("udp", 53, 53)), {"app": "shop"})
FIRST, SECOND = endpoint(1, "A", "default", {"app": "shop"}), endpoint(2, "B", "default", {"app": "shop"})
BOTH = Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS, BLOCKS, {e.id: e for e in (FIRST, SECOND)}, services={SHOP.ident: SHOP})


def planned(snapshot: Snapshot, *silent: str) -> Plan:
    return plan_node(snapshot, Local(silent=frozenset(silent)))


def rules(before: Snapshot, after: Snapshot, *silent: str) -> set[PortRule]:
    was, now = planned(before), planned(after, *silent)
    return set(orphaned(order(diff(now, was, True)), now))


def led(proto: str, port: int, target: int, host: IPv4Address | None = VIP) -> PortRule:
    return PortRule(proto, port, 4, host=host, led=frozenset({(FIRST.address, target)}))  # type: ignore[arg-type]


GONE = replace(BOTH, endpoints={SECOND.id: SECOND})
DRAINED = replace(BOTH, services={SHOP.ident: replace(SHOP, drained=("A/c1",))})
BOTH_GONE = replace(BOTH, endpoints={})
WANTED = {led("tcp", 80, 8080), led("udp", 53, 53), led("tcp", 9090, 8080, None)}


def test_one_that_is_gone_is_forgotten_by_each_way_that_led_to_it() -> None:
    assert rules(BOTH, GONE) == WANTED


@pytest.mark.parametrize(
    ("after", "forgotten"),
    [(BOTH, set()), (DRAINED, set()), (replace(BOTH, alive=frozenset("A")), {"udp"})],
    ids=["nothing", "drained", "away"],
)
def test_what_lives_on_is_not_but_for_datagrams_to_one_that_is_not_ready(after: Snapshot, forgotten: set[str]) -> None:
    assert {rule.proto for rule in rules(BOTH, after)} == forgotten


LOST = replace(BOTH, alive=frozenset("A"))


def test_those_on_a_lost_host_that_is_silent_too_are_forgotten() -> None:
    second = SECOND.address
    assert {(rule.proto, rule.port) for rule in rules(LOST, LOST, "B")} == {("tcp", 80), ("tcp", 9090)}
    assert {(rule.proto, target) for rule in rules(BOTH, LOST, "B") for target, _ in rule.led} == {("tcp", second), ("udp", second)}


@pytest.mark.parametrize("snapshot", [BOTH, LOST], ids=["alive", "lost"])
def test_silence_of_a_node_that_is_not_lost_or_of_another_one_says_nothing(snapshot: Snapshot) -> None:
    assert rules(snapshot, snapshot, "A" if snapshot is LOST else "B") == set()


def test_one_that_drained_before_it_went_is_found_by_all_places() -> None:
    assert rules(DRAINED, replace(DRAINED, endpoints=GONE.endpoints)) == WANTED


def test_a_service_that_is_removed_ends_its_connections() -> None:
    found = rules(BOTH, replace(BOTH, services={}))
    assert {(rule.proto, rule.port) for rule in found} == {("tcp", 80), ("udp", 53), ("tcp", 9090)}
    assert {target for rule in found for target, _ in rule.led} == {FIRST.address, SECOND.address}


def test_by_ipv6_it_is_the_same() -> None:
    shop = replace(SHOP, network="six")
    first, second = endpoint(1, "A", "six", {"app": "shop"}), endpoint(2, "B", "six", {"app": "shop"})
    both = replace(BOTH, endpoints={e.id: e for e in (first, second)}, services={shop.ident: shop})
    drained = replace(both, services={shop.ident: replace(shop, drained=("A/c1",))})
    vip = IPv6Address("fd55:aa3d:5f3e::9")
    wanted = {("tcp", 80, vip, (first.address6, 8080)), ("udp", 53, vip, (first.address6, 53)), ("tcp", 9090, None, (first.address6, 8080))}
    for before in (both, drained):
        found = [rule for rule in rules(before, replace(before, endpoints={second.id: second})) if rule.version == 6]
        assert {(rule.proto, rule.port, rule.host, *rule.led) for rule in found} == wanted
    assert {rule.version for rule in rules(both, replace(both, endpoints={}))} == {4, 6}
    assert rules(both, drained) == set()


def test_without_services_there_is_nothing_to_forget() -> None:
    assert rules(replace(BOTH, services={}), BOTH_GONE) == set()
