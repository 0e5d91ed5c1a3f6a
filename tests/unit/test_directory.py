# SPDX-License-Identifier: Apache-2.0
"""The directory: what a change touches, that advancing equals making anew, and what checks say together."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.model.cluster import Container, Instance, Node, Snapshot
from plait.model.discovery import CatalogNode, Check, Status
from plait.services.directory import Directory, Topic
from plait.services.status import aggregated, weight

NODES = {name: Node(name, f"id-{name}", IPv4Address("192.0.2.1")) for name in "AB"}
WEB, DB = Instance("web", "Web", "A", "10.28.0.2", 80), Instance("db", "db", "B", "10.28.0.3", 5432)
START = Snapshot("A", 5, NODES, frozenset("AB"), instances={("A", "web"): WEB, ("B", "db"): DB})


def check(node: str, check_id: str, service: str = "", status: Status = "critical") -> Check:
    return Check(check_id, node, check_id, status, service_id=service)


def touched(**fields: Any) -> set[Topic]:
    return set(Directory.of(START).advance(replace(START, **fields))[1])


def test_nothing_is_touched_by_what_is_no_part_of_the_catalogue() -> None:
    assert touched(revision=9, containers={}) == set()
    assert touched(instances=dict(START.instances)) == set()


def test_an_instance_touches_its_service_and_its_node_alone() -> None:
    moved = {**START.instances, ("A", "web"): replace(WEB, port=81)}
    about = {Topic("instance", "A/web"), Topic("service", "web"), Topic("node", "a")}
    assert touched(instances=moved) == about | {Topic("services"), Topic("checks")}
    renamed = {**START.instances, ("A", "web"): replace(WEB, name="www")}
    assert {Topic("service", "web"), Topic("service", "www")} <= touched(instances=renamed)
    assert Topic("service", "db") in touched(instances={("A", "web"): WEB})


def test_a_check_touches_what_it_is_about() -> None:
    assert touched(checks={("A", "c"): check("A", "c", "web")}) == {Topic("service", "web"), Topic("node", "a"), Topic("checks")}
    assert touched(checks={("B", "c"): check("B", "c")}) == {Topic("service", "db"), Topic("node", "b"), Topic("checks")}


def test_other_labels_of_a_container_touch_the_instances_that_are_bound_to_it() -> None:
    box = Container("3f0", "box", "A", "docker", labels={"app": "web"})
    bound = replace(START, instances={("A", "web"): replace(WEB, container="box"), ("B", "db"): DB})
    about = {Topic("checks")}
    known, touched = Directory.of(bound).advance(replace(bound, containers={("A", "3f0"): box}))
    assert touched == about and known.labels(bound.instances["A", "web"]) == {"app": "web"}
    for other, topics in ((replace(box, pid=7), set()), (replace(box, labels={"app": "db"}), about), (replace(box, name="b"), about)):
        after, touched = known.advance(replace(known.snapshot, containers={("A", "3f0"): other}))
        assert touched == topics
        assert after.labels(bound.instances["A", "web"]) == (other.labels if other.name == "box" else {})
    assert known.advance(bound)[1] == about


def test_a_nodes_death_touches_its_services() -> None:
    about = {Topic("service", "db"), Topic("node", "b")}
    assert touched(alive=frozenset("A")) == about | {Topic("nodes"), Topic("homes"), Topic("checks")}


def test_a_node_without_services_is_no_home() -> None:
    assert touched(catalog_nodes={"C": CatalogNode("C", "192.0.2.9")}) == {Topic("node", "c"), Topic("nodes"), Topic("checks")}


def test_a_node_that_leaves_takes_its_services_along() -> None:
    gone = touched(nodes={"A": NODES["A"]})
    assert {Topic("service", "db"), Topic("node", "b"), Topic("nodes"), Topic("services")} <= gone
    assert Topic("service", "web") not in gone


CHECKS = st.builds(
    check, st.sampled_from("AB"), st.sampled_from("xy"), st.sampled_from(["", "1"]), st.sampled_from(["passing", "critical"])
)
INSTANCES = st.builds(Instance, st.sampled_from("12"), st.sampled_from(["web", "WEB", "db"]), st.sampled_from("ABX"))
SNAPSHOTS = st.builds(
    lambda instances, checks, alive, external: Snapshot(
        "A",
        nodes=NODES,
        alive=frozenset({"A"} | alive),
        instances={(i.node, i.id): i for i in instances},
        checks={(c.node, c.id): c for c in checks},
        catalog_nodes={"X": CatalogNode("X", "192.0.2.9")} if external else {},
    ),
    st.lists(INSTANCES, max_size=4),
    st.lists(CHECKS, max_size=4),
    st.sets(st.sampled_from("AB")),
    st.booleans(),
)


@given(st.lists(SNAPSHOTS, min_size=1, max_size=4))
def test_advancing_equals_making_anew_and_untouched_services_say_the_same(snapshots: list[Snapshot]) -> None:
    directory = Directory.of(snapshots[0])
    for snapshot in snapshots[1:]:
        before = directory
        directory, topics = directory.advance(snapshot)
        fresh = Directory.of(snapshot)
        assert (directory.nodes, directory.by_service, directory.by_node) == (fresh.nodes, fresh.by_service, fresh.by_node)
        assert directory.checks == fresh.checks
        for name in {*before.by_service, *directory.by_service}:
            if Topic("service", name) not in topics:
                assert _said(before, name) == _said(directory, name)


def _said(directory: Directory, name: str) -> list[object]:
    return [(i, directory.instance_checks(i)) for i in directory.by_service.get(name, ())]


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([], "passing"),
        ([check("A", "1", status="passing"), check("A", "2", status="warning")], "warning"),
        ([check("A", "1", status="warning"), check("A", "2", status="critical")], "critical"),
        ([check("A", "1", status="critical"), check("A", "_service_maintenance:web")], "maintenance"),
        ([check("A", "_node_maintenance")], "maintenance"),
    ],
)
def test_the_worst_counts_and_maintenance_most(checks: list[Check], status: str) -> None:
    assert aggregated(checks) == status


def test_weights_follow_the_status() -> None:
    instance = replace(WEB, weight_passing=70_000, weight_warning=3)
    assert [weight(instance, status) for status in ("passing", "warning", "critical", "maintenance")] == [65535, 3, 0, 0]


def test_an_external_node_has_no_sign_of_life_and_its_checks_count() -> None:
    far = Instance("far", "far", "X", origin="catalog")
    snapshot = replace(START, instances={("X", "far"): far}, catalog_nodes={"X": CatalogNode("X", "far.example")})
    assert Directory.of(snapshot).status(far) == "passing"
    assert Directory.of(replace(snapshot, checks={("X", "c"): check("X", "c")})).status(far) == "critical"
