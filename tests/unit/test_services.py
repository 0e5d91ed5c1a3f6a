# SPDX-License-Identifier: Apache-2.0
"""Consul's views, request bodies and indexes, without HTTP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from plait.model.cluster import Container, Endpoint, Instance, Node, Snapshot
from plait.services.directory import Directory
from plait.services.index import QueryIndex, content_hash
from plait.services.requests import BadRequest, duration_s, parse_service
from plait.services.views import Views, container_address, seed_answer

A = Node("A", "id-a", IPv4Address("192.0.2.1"), meta={"server": "1", "rack": "r1"})
B = Node("B", "id-b", IPv4Address("192.0.2.2"), meta={"rack": "r2"})
WEB_A = Instance("web-a", "web", "A", "10.28.0.2", 80, ("http", "v1"), create_index=5, modify_index=6)
WEB_B = Instance("web-b", "Web", "B", "10.28.16.2", 80, ("http", "V2"), container="web", down=True)
SNAPSHOT = Snapshot(
    "A",
    revision=9,
    nodes={"B": B, "A": A},
    alive=frozenset({"A", "B"}),
    instances={("B", "web-b"): WEB_B, ("A", "web-a"): WEB_A, ("gone", "x"): Instance("x", "web", "gone")},
)
VIEWS = Views(Directory.of(SNAPSHOT), "dc1")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("100000ms", 100),
        ("1m30s", 90),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("250us", 0.00025),
        ("5µs", 5e-6),
        ("1ns", 1e-9),
        ("0", 0),
    ],
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "-1s", "s", "1x", "1s ", "1 s", "1e3s", "١s1"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_s(text)


@pytest.mark.parametrize(
    "body",
    [
        {"Name": "web", "ID": "w1", "EnableTagOverride": True, "TaggedAddresses": {"lan": {"Address": "10.0.0.1", "Port": 8}}},
        {"name": "web", "id": "w1", "enabletagoverride": True, "taggedaddresses": {"lan": {"address": "10.0.0.1", "port": 8}}},
        {"name": "web", "id": "w1", "enable_tag_override": True, "tagged_addresses": {"lan": {"ADDRESS": "10.0.0.1", "Port": 8}}},
    ],
)
def test_three_spellings_of_keys_mean_the_same(body: dict[str, object]) -> None:
    assert parse_service(body, "A") == Instance(
        "w1", "web", "A", enable_tag_override=True, tagged_addresses={"lan": "10.0.0.1"}, tagged_ports={"lan": 8}
    )


def test_what_is_absent_or_null_has_its_default() -> None:
    plain = Instance("web", "web", "A")
    assert parse_service({"Name": "web"}, "A") == plain
    assert parse_service({"Name": "web", "Unknown": 1, "Tags": None, "Meta": None, "Check": None, "Checks": [], "Port": None}, "A") == plain


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "expected a JSON object, got nothing"),
        ([1], "expected a JSON object, got list"),
        ({}, "Missing service name"),
        ({"Name": "  "}, "Missing service name"),
        ({"Name": 7}, "name must be a text"),
        ({"Name": "a\0b"}, "Invalid service name"),
        ({"Name": "web", "ID": "i" * 513}, "Invalid service id"),
        ({"Name": "web", "ID": "ü" * 257}, "Invalid service id"),
        ({"Name": "web", "Address": "0.0.0.0"}, "Invalid service address"),
        ({"Name": "web", "Address": "::"}, "Invalid service address"),
        ({"Name": "web", "Address": "no host"}, "Invalid service address"),
        ({"Name": "web", "Port": 65536}, "port must be a number from 0 to 65535"),
        ({"Name": "web", "Port": "80"}, "port must be a number"),
        ({"Name": "web", "Port": True}, "port must be a number"),
        ({"Name": "web", "Tags": "http"}, "tags must be a list"),
        ({"Name": "web", "Tags": [1]}, "tags must be a list"),
        ({"Name": "web", "Meta": {"a": 1}}, "Invalid Service Meta"),
        ({"Name": "web", "Meta": {"a b": "x"}}, "Key contains invalid characters"),
        ({"Name": "web", "Meta": {"consul-x": "x"}}, "Key contains invalid characters"),
        ({"Name": "web", "Meta": {"a": "x" * 513}}, "Value is too long"),
        ({"Name": "web", "Meta": {f"k{n}": "" for n in range(65)}}, "more than 64"),
        ({"Name": "web", "Weights": {"Passing": 0}}, "Invalid Weights"),
        ({"Name": "web", "Weights": {"Passing": 1, "Warning": 65536}}, "Invalid Weights"),
        ({"Name": "web", "Weights": {"Passing": True}}, "Invalid Weights"),
        ({"Name": "web", "EnableTagOverride": "false"}, "must be true or false"),
        ({"Name": "web", "TaggedAddresses": {"lan": {"Address": "::"}}}, "Invalid service address"),
        ({"Name": "web", "TaggedAddresses": [1]}, "taggedaddresses must be a map"),
    ],
)
def test_a_wrong_registration_is_refused_with_a_reason(body: object, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_service(body, "A")


def test_nodes_and_services_are_sorted_and_the_registry_is_one_of_them() -> None:
    assert [node["Node"] for node in VIEWS.nodes()] == ["A", "B"]
    assert VIEWS.services() == {"Web": ["V2", "http"], "consul": [], "web": ["http", "v1"]}
    assert list(VIEWS.services()) == ["Web", "consul", "web"]
    assert VIEWS.servers() == ["192.0.2.1:8300"]


def test_instances_of_unknown_nodes_are_not_shown_and_names_match_in_any_case() -> None:
    assert [i.id for i in VIEWS.instances("WEB")] == ["web-a", "web-b"]
    assert [i.id for i in VIEWS.instances("web", tags=["HTTP", "v2"])] == ["web-b"]
    assert VIEWS.instances("web", tags=["http", "v3"]) == []
    assert [i.id for i in VIEWS.instances_on("A")] == ["consul", "web-a"]


def test_a_dead_node_makes_its_instances_critical() -> None:
    assert VIEWS.status(WEB_A) == "passing"
    dead = Views(Directory.of(replace(SNAPSHOT, alive=frozenset({"B"}))), "dc1")
    assert dead.status(WEB_A) == "critical"
    assert [check["Status"] for check in dead.node_checks("A")] == ["critical"]
    assert [member["Status"] for member in dead.members()] == [4, 1]


def test_a_container_that_does_not_run_makes_its_instance_critical() -> None:
    assert VIEWS.status(WEB_B) == "critical"
    assert VIEWS.status(replace(WEB_B, down=False)) == "passing"
    assert [(c["CheckID"], c["Status"]) for c in VIEWS.instance_checks(WEB_B)] == [("serfHealth", "passing"), ("running:web-b", "critical")]


def test_checks_come_by_node_then_service() -> None:
    instances = {**SNAPSHOT.instances, ("A", "z"): Instance("z", "z", "A", container="z")}
    views = Views(Directory.of(replace(SNAPSHOT, instances=instances)), "dc1")
    assert [(c["Node"], c["CheckID"]) for c in views.checks()] == [
        ("A", "serfHealth"),
        ("A", "running:z"),
        ("B", "serfHealth"),
        ("B", "running:web-b"),
    ]
    assert [c["CheckID"] for c in views.checks("critical")] == ["running:web-b"]
    assert views.checks("unheard-of") == []
    assert [c["CheckID"] for c in views.node_checks("A")] == ["serfHealth", "running:z"]


def test_tagged_addresses_of_a_service_have_address_and_port() -> None:
    tagged = replace(WEB_A, tagged_addresses={"lan": "10.0.0.1", "wan": "192.0.2.9"}, tagged_ports={"wan": 8080})
    assert VIEWS.node_service(tagged)["TaggedAddresses"] == {
        "lan": {"Address": "10.0.0.1", "Port": 80},
        "wan": {"Address": "192.0.2.9", "Port": 8080},
    }


def test_only_nodes_with_the_wanted_meta_remain() -> None:
    def kept(*wanted: str) -> list[object]:
        return [node["Node"] for node in Views(Directory.of(SNAPSHOT), "dc1", wanted).nodes()]

    assert kept("rack:r2") == ["B"]
    assert kept("rack:r2", "consul-network-segment:") == ["B"]
    assert kept("rack:r2", "rack:r1") == kept("server:1") == []
    assert kept() == ["A", "B"]


def test_the_seeds_answer_has_its_keys_in_its_order() -> None:
    answer = seed_answer(Instance("web", "web", "A", "10.28.0.2", 80, ("http",), create_index=77, modify_index=77))
    assert list(answer.items()) == [
        ("ID", "web"),
        ("Name", "web"),
        ("Tags", ["http"]),
        ("Address", "10.28.0.2"),
        ("TaggedAddresses", {"lan": "10.28.0.2", "wan": "10.28.0.2"}),
        ("Meta", {}),
        ("Port", 80),
        ("EnableTagOverride", False),
        ("CreateIndex", 77),
        ("ModifyIndex", 77),
    ]


def box(node: str, name: str, state: str = "running", **addresses: str) -> Container:
    return Container(f"{node}-{name}", name, node, "docker", state, addresses={net: IPv4Address(a) for net, a in addresses.items()})


def test_a_containers_address_is_found_here_first_and_in_the_default_network_first() -> None:
    boxes = [
        box("B", "web", default="10.28.16.2"),
        box("A", "web", abc="10.29.0.2", default="10.28.0.2"),
        box("B", "db", zz="10.30.0.3", mesh="10.29.16.3"),
        box("A", "old", "exited", default="10.28.0.9"),
    ]
    endpoint = Endpoint("e", "default", "B", IPv4Address("10.28.16.7"), "", "", "sandbox", name="box")
    snapshot = Snapshot("A", containers={(c.node, c.id): c for c in boxes}, endpoints={"e": endpoint})
    assert container_address(snapshot, "web") == "10.28.0.2"
    assert container_address(replace(snapshot, me="B"), "web") == "10.28.16.2"
    assert container_address(snapshot, "web", "B") == "10.28.16.2"
    assert container_address(snapshot, "db") == "10.29.16.3"
    assert container_address(snapshot, "db", "A") == ""
    assert container_address(snapshot, "box") == "10.28.16.7"
    assert container_address(snapshot, "old") == ""


def test_the_index_moves_with_the_result_and_only_with_it() -> None:
    index = QueryIndex()
    assert index.index_of("q", b"1", 0) == 1
    assert index.index_of("q", b"1", 50) == 1
    assert index.index_of("q", b"2", 51) == 51
    assert index.index_of("q", b"1", 51) == 52
    assert index.index_of("q", b"1", 60) == 52
    assert index.index_of("other", b"1", 60) == 60


def test_a_forgotten_query_gets_the_present_revision() -> None:
    index = QueryIndex(size=2)
    assert index.index_of("a", b"1", 5) == 5
    index.index_of("b", b"1", 6)
    index.index_of("a", b"1", 7)
    index.index_of("c", b"1", 8)
    assert index.index_of("a", b"1", 9) == 5
    assert index.index_of("b", b"1", 9) == 9


def test_the_hash_of_a_content_tells_contents_apart() -> None:
    assert content_hash(b"a") == content_hash(b"a") != content_hash(b"b")
    assert len(content_hash(b"")) == 16
