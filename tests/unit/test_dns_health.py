# SPDX-License-Identifier: Apache-2.0
"""Which instances DNS answers with, by what checks say of them and of their nodes."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

import pytest

from plait.dns import message as m
from plait.dns.zone import build_table
from plait.model.cluster import Instance, Node, Snapshot
from plait.model.discovery import CatalogNode, Check, Status

NODES = {name: Node(name, name, IPv4Address(f"192.0.2.{number}")) for number, name in enumerate("AB", 1)}
INSTANCES = {(n, f"web-{n}"): Instance(f"web-{n}", "web", n, port=80, weight_passing=10, weight_warning=3) for n in "AB"}


def check(node: str, status: Status, service: str = "") -> Check:
    return Check(f"{service or node}-{status}", node, "check", status, service_id=service, service_name="web" if service else "")


def snapshot(checks: Iterable[Check], **more: object) -> Snapshot:
    return Snapshot("A", 1, NODES, frozenset(NODES), instances=INSTANCES, checks={(c.node, c.id): c for c in checks}, **more)  # type: ignore[arg-type]


def answers(found: Snapshot, name: bytes = b"web.service.consul") -> dict[str, int]:
    """Address -> weight of its SRV record; empty if the name does not exist."""
    records = build_table(found).names.get(name, ())
    weights = sorted(int.from_bytes(rdata[2:4], "big") for rtype, rdata in records if rtype == m.SRV)
    addresses = sorted(str(ip_address(rdata)) for rtype, rdata in records if rtype == m.A)
    return dict(zip(addresses, weights, strict=True))


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([], ["192.0.2.1", "192.0.2.2"]),
        ([check("A", "passing", "web-A")], ["192.0.2.1", "192.0.2.2"]),
        ([check("A", "critical", "web-A")], ["192.0.2.2"]),
        ([check("A", "passing", "web-A"), check("A", "critical", "web-A")], ["192.0.2.2"]),
        ([check("A", "critical")], ["192.0.2.2"]),
        ([check("A", "critical", "other")], ["192.0.2.1", "192.0.2.2"]),
        ([check("A", "warning", "web-A")], ["192.0.2.1", "192.0.2.2"]),
        ([check("A", "critical", "web-A"), check("B", "critical")], []),
    ],
)
def test_what_is_critical_is_not_answered(checks: list[Check], expected: list[str]) -> None:
    assert list(answers(snapshot(checks))) == expected


def test_a_name_without_a_healthy_instance_does_not_exist() -> None:
    gone = build_table(snapshot([check("A", "critical"), check("B", "critical")])).names
    assert b"web.service.consul" not in gone


def test_weights_are_by_status() -> None:
    assert sorted(answers(snapshot([])).values()) == [10, 10]
    assert sorted(answers(snapshot([check("A", "warning", "web-A")])).values()) == [3, 10]
    assert sorted(answers(snapshot([check("B", "warning")])).values()) == [3, 10]


def test_nodes_that_somebody_put_into_the_catalogue_are_answered_too() -> None:
    foreign = {"ext": CatalogNode("ext", "198.51.100.7", meta={"rack": "9"}), "named": CatalogNode("named", "db.example.org")}
    instances = {("ext", "db"): Instance("db", "db", "ext", port=1), ("named", "db"): Instance("db", "db", "named", port=2)}
    found = Snapshot("A", 1, NODES, frozenset(NODES), instances=instances, catalog_nodes=foreign)
    names = build_table(found).names
    assert (m.A, ip_address("198.51.100.7").packed) in names[b"ext.node.consul"]
    assert (m.TXT, b"\x06rack=9") in names[b"ext.node.consul"]
    assert (m.CNAME, m.wire_name(b"db.example.org")) in names[b"named.node.consul"]
    assert (m.A, ip_address("198.51.100.7").packed) in names[b"db.service.consul"]
    assert sum(rtype == m.SRV for rtype, _ in names[b"db.service.consul"]) == 2


def test_an_instance_of_a_dead_node_is_not_answered() -> None:
    found = snapshot([])
    assert list(answers(Snapshot("A", 1, NODES, frozenset("A"), instances=found.instances))) == ["192.0.2.1"]
