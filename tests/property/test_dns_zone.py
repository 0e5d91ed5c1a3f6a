# SPDX-License-Identifier: Apache-2.0
"""The zone that follows changes against the one that is made anew: after any changes in any order both say the same.

Steps are drawn from few values, by seed, so that many of them meet on the same names: hypothesis, over the same records, passed over three
deliberate mistakes that this finds.
"""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from plait.dns.table import Table, apply_changes
from plait.dns.zone import Touched, Zone, build_table
from plait.model.cluster import Container, Endpoint, Instance, NamedPort, Network, Node, Snapshot
from plait.model.discovery import CatalogNode, Check

IP = IPv4Address
NODES, IDS, STATES = "ABX", "123", ("passing", "warning", "critical")
NAMES = ("web", "web", "db", "a.b", "x" * 64, "")
HOSTS = ("", "10.28.0.5", "10.28.0.6", "2001:db8::5", "db.example.org", "a..b")
ADDRESSES = (IP("10.28.0.5"), IP("10.28.0.6"), IP("10.30.0.7"))
NETWORKS = {
    "default": Network("default", IPv4Network("10.28.0.0/16"), IP("10.28.255.254"), 20),
    "mesh": Network("mesh", IPv4Network("10.30.0.0/22"), IP("10.30.3.254"), 24),
}
KINDS = {"instances": 40, "checks": 30, "endpoints": 12, "containers": 12, "alive": 3, "networks": 3}


def record(kind: str, pick: random.Random) -> object:
    """Something of that kind."""
    ident, node, name = pick.choice(IDS), pick.choice(NODES), pick.choice(NAMES)
    if kind == "instances":
        tags = tuple(pick.choices(("t", "v1.2", "T", "b"), k=pick.randrange(3)))
        ports = pick.choice(((), (NamedPort("http", 81), NamedPort(tags[0] if tags else "x", 53, protocol="udp"))))
        more = {"down": pick.random() < 0.1, "container": name, "meta": {"k": name[:3]}, "ports": ports}
        return Instance(ident, name, node, pick.choice(HOSTS), 80, tags, **more)
    if kind == "checks":
        return Check(ident, node, "c", pick.choice(STATES), pick.choice(("", "more")), service_id=pick.choice(("", "1", "2")))
    if kind == "endpoints":
        return Endpoint(ident, pick.choice(list(NETWORKS)), node, pick.choice(ADDRESSES), "", "", "", name=name, aliases=("sql",))
    if kind == "containers":
        state, labels = pick.choice(("running", "exited")), {"c": pick.choice("xyz")}
        return Container(ident, name, node, "docker", state, labels=labels, addresses={"default": pick.choice(ADDRESSES)})
    if kind == "alive":
        return frozenset(pick.choice(("A", "B", "AB")))
    return pick.choice(({"default": NETWORKS["default"]}, NETWORKS, {}))


def step(snapshot: Snapshot, pick: random.Random) -> tuple[Snapshot, set[Touched]]:
    """The snapshot with one record put or dropped, and what that touched."""
    kind = pick.choices(list(KINDS), list(KINDS.values()))[0]
    found = record(kind, pick)
    if kind in ("alive", "networks"):
        return replace(snapshot, revision=snapshot.revision + 1, **{kind: found}), set()  # type: ignore[arg-type]
    key = found.id if isinstance(found, Endpoint) else (found.node, found.id)  # type: ignore[attr-defined]
    records = dict(getattr(snapshot, kind))
    records.pop(key, None)
    if pick.random() < 0.75:
        records[key] = found
    return replace(snapshot, revision=snapshot.revision + 1, **{kind: records}), {(kind, key)}


@pytest.mark.parametrize("seed", range(12))
def test_a_zone_that_followed_says_what_a_new_one_says(seed: int) -> None:
    pick = random.Random(seed)
    nodes = {"A": Node("A", "1", IP("192.0.2.1"), tunnel=IP("10.28.0.1"), meta={"server": ""}), "B": Node("B", "2", IP("192.0.2.2"))}
    outside = {"X": CatalogNode("X", "10.28.0.6", meta={"k": "v"})}
    snapshot = Snapshot("A", 1, nodes, frozenset("B"), NETWORKS, catalog_nodes=outside)
    zone = Zone(snapshot)
    child = Table(*zone.table.parts())
    touched: set[Touched] = set()
    for _ in range(400):
        snapshot, more = step(snapshot, pick)
        touched |= more
        if pick.random() < 0.3:  # several changes may come at once
            continue
        changes = zone.advance(snapshot, touched)
        touched = set()
        if changes is not None:
            apply_changes(child, changes)
        fresh = build_table(snapshot)
        assert zone.table.names == fresh.names
        assert (child.names, child.zones) == (fresh.names, fresh.zones)


def test_the_output_of_a_check_changes_nothing() -> None:
    nodes = {"A": Node("A", "1", IP("192.0.2.1"))}
    instances = {("A", "1"): Instance("1", "web", "A")}
    snapshot = Snapshot("A", 1, nodes, instances=instances, checks={("A", "c"): Check("c", "A", "c", "warning", "one", service_id="1")})
    zone = Zone(snapshot)
    later = replace(snapshot, revision=2, checks={("A", "c"): Check("c", "A", "c", "warning", "two", service_id="1")})
    assert zone.advance(later, {("checks", ("A", "c"))}) is None
    assert zone.table.serial == 1
