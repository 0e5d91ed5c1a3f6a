# SPDX-License-Identifier: Apache-2.0
"""Containers that policies select and that this host cannot hold to them are named."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.agent.policing import Gaps
from plait.model.cluster import Container, Network, Snapshot
from plait.policy.compile import Recompiling
from plait.policy.kubernetes import read_policies

A, N = IPv4Address, IPv4Network
ALL = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all}\nspec: {podSelector: {matchLabels: {app: db}}}\n"
LAN = Network("lan", N("10.40.0.0/24"), A("10.40.0.1"), 28, backend="macvlan", options={"parent": "eth1"})
HERE = Network("here", N("10.41.0.0/24"), A("10.41.0.1"), 28, backend="bridge")


def cluster(**networks: str) -> Snapshot:
    """Endpoints `c0`, `c1`… of the label app=db, each on one network."""
    made = {}
    for number, (name, node) in enumerate(networks.items()):
        address = {"lan": A("10.40.0.5"), "here": A("10.41.0.5"), "default": A("10.28.1.5")}[name]
        made[f"e{number}"] = replace(endpoint(number, node, "default", {"app": "db"}), network=name, address=address)
    policies = {policy.ident: policy for policy in read_policies(ALL).policies}
    return Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS | {"lan": LAN, "here": HERE}, BLOCKS, made, policies=policies)


@pytest.mark.parametrize("filtering", [True, False])
def test_what_lies_on_a_link_of_the_host_or_shares_a_bridge_that_nobody_sees_is_named(filtering: bool) -> None:
    found = Gaps(Recompiling(), lambda: filtering).texts(cluster(lan="A", here="A", default="A"))
    assert found.keys() == ({"lan"} if filtering else {"lan", "here"})
    assert found["lan"].startswith("network lan lies on a link of the host") and found["lan"].endswith(": c0")


def test_containers_of_dockers_bridge_share_one_too() -> None:
    box = Container("c1", "bridged", "A", "docker", labels={"app": "db"}, addresses={"default": A("10.28.1.9")})
    snapshot = replace(cluster(default="A"), containers={("A", "c1"): box})
    assert Gaps(Recompiling(), lambda: True).texts(snapshot) == {}
    (text,) = Gaps(Recompiling(), lambda: False).texts(snapshot).values()
    assert text.endswith("(no br_netfilter): bridged")


def test_of_other_hosts_and_of_whom_no_policy_selects_nothing_is_said() -> None:
    gaps = Gaps(Recompiling(), lambda: False)
    assert gaps.texts(cluster(lan="B", here="B")) == {}
    bare = replace(cluster(lan="A"), policies={})
    assert gaps.texts(bare) == {}
    assert gaps.texts(cluster(lan="A")).keys() == {"lan"}, "and it looks again when something has changed"


def test_many_are_told_by_some() -> None:
    ends = {f"e{n}": replace(endpoint(n, "A", "default", {"app": "db"}), network="lan", address=A(f"10.40.0.{n + 2}")) for n in range(9)}
    text = Gaps(Recompiling(), lambda: True).texts(replace(cluster(), endpoints=ends))["lan"]
    assert text.endswith("c0, c1, c2, c3, c4 and 4 more")
