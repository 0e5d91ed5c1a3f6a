# SPDX-License-Identifier: Apache-2.0
"""Each rule of the difference and of the order by one example; what holds for all plans is in tests/property."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from plait.model.objects import (
    Addr,
    BridgeLink,
    Fdb,
    HookRule,
    KernelObject,
    Neigh,
    NftChain,
    NftSet,
    Op,
    Plan,
    Route,
    Sysctl,
    VxlanLink,
)
from plait.reconcile import diff, order

A = IPv4Address
SYSCTL = Sysctl("ipv4/ip_forward", "1")
SET = NftSet("hosts", "ipv4_addr", frozenset({"10.0.0.1"}))
EVERY: tuple[KernelObject, ...] = (
    VxlanLink("pl-x1", 1, 4789, A("198.18.0.1"), "02:00:00:00:00:01", 1450),
    Addr("pl-x1", IPv4Interface("10.28.1.0/32")),
    SYSCTL,
    Neigh("pl-x1", A("10.28.2.0"), "02:00:00:00:00:02"),
    Fdb("pl-x1", "02:00:00:00:00:02", A("198.18.0.2")),
    Route(IPv4Network("10.28.2.0/24"), "pl-x1"),
    SET,
    NftChain("forward", ("ip saddr @hosts accept",)),
    HookRule("ip", "filter", "DOCKER-USER", "accept"),
)
STAGES = ("link", "sysctl", "addr", "neigh|fdb", "route", "nft set", "nft chain", "hook")


def keyed(*objects: KernelObject) -> Plan:
    return {obj.key: obj for obj in objects}


def test_equal_is_nothing_to_do() -> None:
    assert diff(keyed(*EVERY), keyed(*EVERY), True) == []


def test_missing_is_put_and_surplus_is_deleted() -> None:
    bridge = BridgeLink("pl-gw", "02:00:00:00:00:aa")
    assert diff(keyed(bridge), keyed(SET), True) == [Op("put", bridge), Op("del", None, SET)]


def test_another_value_under_the_same_key_is_put_with_what_is_there() -> None:
    more = replace(SET, elements=SET.elements | {"10.0.0.2"})
    assert diff(keyed(more), keyed(SET), True) == [Op("put", more, SET)]


def test_nothing_is_deleted_without_leave_and_a_sysctl_never() -> None:
    assert diff({}, keyed(*EVERY), False) == []
    assert {op.key for op in diff({}, keyed(*EVERY), True)} == {obj.key for obj in EVERY} - {SYSCTL.key}


def test_what_others_stand_on_comes_first_and_goes_last() -> None:
    ops = order(Op("put", obj) for obj in reversed(EVERY))
    kinds = [" ".join(op.key[:2]) if op.key[0] == "nft" else op.key[0] for op in ops]
    stages = [next(n for n, stage in enumerate(STAGES) if kind in stage.split("|")) for kind in kinds]
    assert stages == sorted(stages) and len(set(stages)) == len(STAGES)
    gone = [op.key for op in order(Op("del", None, obj) for obj in EVERY)]
    ranked = dict(zip((op.key for op in ops), stages, strict=True))
    assert [ranked[key] for key in gone] == sorted(stages, reverse=True)


def test_deletions_come_after_every_put() -> None:
    ops = order([Op("del", None, EVERY[0]), Op("put", EVERY[-1])])
    assert [op.verb for op in ops] == ["put", "del"]


def test_what_a_map_leads_to_for_the_first_time_comes_before_it_and_what_it_led_to_goes_after() -> None:
    new, old = NftChain("a_new", ("accept",)), NftChain("z_old", ("drop",))
    before = NftSet("m_leads", "ipv4_addr : verdict", frozenset({"10.28.1.2 : goto z_old"}), kind="map")
    after = replace(before, elements=frozenset({"10.28.1.2 : goto a_new"}))
    assert order([Op("put", after, before), Op("del", None, old), Op("put", new)]) == [
        Op("put", new),
        Op("put", after, before),
        Op("del", None, old),
    ]
    redeclared = replace(before, flags=("interval",))
    assert order([Op("put", redeclared, before), Op("put", old)]) == [Op("put", old), Op("put", redeclared, before)]


def test_the_order_does_not_depend_on_how_the_operations_came() -> None:
    ops = [Op("put", obj) for obj in EVERY]
    assert order(ops) == order(reversed(ops))
