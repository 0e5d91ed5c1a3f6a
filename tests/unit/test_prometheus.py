# SPDX-License-Identifier: Apache-2.0
"""Instances as target groups of Prometheus' HTTP service discovery."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from plait.model.cluster import Container, Instance, NamedPort, Node, Snapshot
from plait.services.directory import Directory
from plait.services.prometheus import target_groups
from plait.services.views import Views

WEB = Instance("w1", "Web", "A", "10.28.0.2", 80, ("blue", "v1"), meta={"app.kind": "shop", "team": "x"}, container="box")
SNAPSHOT = Snapshot(
    "A",
    nodes={"A": Node("A", "1", IPv4Address("192.0.2.1"), meta={"rack": "r1", "server": "1"})},
    alive=frozenset("A"),
    containers={("A", "3f0"): Container("3f0", "box", "A", "docker", labels={"com.example/tier": "prod", "team": "image"})},
)


def groups(*instances: Instance, port: str = "") -> list[dict[str, Any]]:
    views = Views(Directory.of(replace(SNAPSHOT, instances={(i.node, i.id): i for i in instances})), "dc1")
    return list(target_groups(views, views.all_instances(), port))


def test_an_instance_is_a_target_with_all_that_is_known_of_it() -> None:
    (group,) = groups(WEB)
    assert group["targets"] == ["10.28.0.2:80"]
    labels = {key.removeprefix("__meta_plait_"): value for key, value in group["labels"].items()}
    shown = {key: value for key, value in labels.items() if not key.startswith("metadata_consul")}
    assert shown == {
        "address": "192.0.2.1",
        "dc": "dc1",
        "health": "passing",
        "node": "A",
        "service": "Web",
        "service_address": "10.28.0.2",
        "service_id": "w1",
        "tags": ",blue,v1,",
        "container": "box",
        "port_name": "",
        "service_port": "80",
        "metadata_rack": "r1",
        "service_metadata_app_kind": "shop",
        "service_metadata_team": "x",
        "label_com_example_tier": "prod",
        "label_team": "x",
        "label_app_kind": "shop",
    }
    assert all(re.fullmatch(r"__meta_plait_[A-Za-z0-9_]+", key) for key in group["labels"])


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({"address": ""}, ["192.0.2.1:80"]),
        ({"address": "2001:db8::1"}, ["[2001:db8::1]:80"]),
        ({"address": "db.example.org", "port": 5432}, ["db.example.org:5432"]),
        ({"port": 0}, []),
        ({"ports": (NamedPort("http", 80, True), NamedPort("metrics", 9100))}, ["10.28.0.2:80", "10.28.0.2:9100"]),
        ({"ports": (NamedPort("metrics", 9100), NamedPort("dns", 53, protocol="udp"))}, ["10.28.0.2:9100", "10.28.0.2:80"]),
    ],
)
def test_targets(fields: dict[str, Any], targets: list[str]) -> None:
    assert [target for group in groups(replace(WEB, **fields)) for target in group["targets"]] == targets


def test_ports_can_be_chosen_by_name_and_are_told_apart() -> None:
    both = replace(WEB, ports=(NamedPort("http", 80, True), NamedPort("Metrics", 9100)))
    (group,) = groups(both, replace(WEB, id="w2"), port="metrics")
    labels = group["labels"]
    assert (labels["__meta_plait_port_name"], labels["__meta_plait_service_port"]) == ("Metrics", "9100")
