# SPDX-License-Identifier: Apache-2.0
"""Networks that are isolated, with packets: neighbours do not reach each other by any way, everybody else does as ever."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from tests.kernel.test_datapath import BY_NAME, NETWORKS, WAYS, WIRE, Hosts, two_hosts

from plait.model.cluster import Network
from plait.policy.kubernetes import read_policies

pytestmark = pytest.mark.root
REFUSED_S = 0.3
ISOLATED = {"isolated": "true"}
NEIGHBOURS = [("near", "web"), ("web", "near"), ("far", "web"), ("web", "far")]
OPENED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {plait.container: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {plait.container: near}}}]
"""


def network(**options: str) -> Network:
    return replace(NETWORKS[0], vni=7, options={**ISOLATED, **options})


@pytest.fixture(scope="module", params=WAYS)
def routed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("routed"), request.param, network()) as made:
        yield made


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("switched"), "fast", network(layer2="true")) as made:
        for host in WIRE:  # so that nothing but what is tested here keeps anything from anybody
            made.run(host, "sysctl -qw net.bridge.bridge-nf-call-iptables=0")
        yield made


def reaches(hosts: Hosts, client: str, server: str) -> bool:
    return hosts.connects(client, BY_NAME[server].address, 80, server, wait_s=REFUSED_S) is not None


@pytest.mark.parametrize(("client", "server"), NEIGHBOURS)
def test_neighbours_do_not_reach_each_other(routed: Hosts, client: str, server: str) -> None:
    assert not reaches(routed, client, server)
    assert not routed.pings(client, BY_NAME[server].address)


@pytest.mark.parametrize(("client", "server"), NEIGHBOURS)
def test_neighbours_on_one_link_do_not_either(switched: Hosts, client: str, server: str) -> None:
    assert not reaches(switched, client, server)
    assert not switched.pings(client, BY_NAME[server].address)


def test_their_hosts_the_outside_and_published_ports_are_reached(routed: Hosts) -> None:
    assert all(routed.pings(host, BY_NAME[name].address) for host in "AB" for name in ("web", "far"))
    assert routed.pings("web", NETWORKS[0].gateway)
    assert routed.connects("web", WIRE["B"], 9000, "B", 9000) == WIRE["A"]
    assert routed.connects("B", WIRE["A"], 8080) is not None
    assert routed.connects("A", IPv4Address("127.0.0.1"), 8081) is not None
    assert reaches(routed, "stranger", "foreign"), "other networks are as they were"


def test_and_from_one_link_too(switched: Hosts) -> None:
    assert all(switched.pings(host, BY_NAME[name].address) for host in "AB" for name in ("web", "far"))
    assert switched.pings("web", NETWORKS[0].gateway)
    assert switched.connects("web", WIRE["B"], 9000, "B", 9000) == WIRE["A"]
    assert switched.connects("B", WIRE["A"], 8080) is not None
    assert switched.connects("web", WIRE["A"], 8080) is not None, "and one reaches itself by its published port"


@pytest.mark.parametrize("server", ["near", "far"])
def test_a_host_does_not_route_between_neighbours_on_its_bridge(switched: Hosts, server: str) -> None:
    """Whatever MAC a container believes its neighbour to have."""
    gateway, to = NETWORKS[0].gateway, BY_NAME[server].address
    switched.pings("web", gateway)
    found = re.search(r"lladdr (\S+)", switched.run("web", f"ip neigh show {gateway} dev eth0"))
    assert found is not None
    switched.run("web", f"ip neigh replace {to} lladdr {found[1]} dev eth0 nud permanent")
    switched.run(server, f"ip neigh replace {BY_NAME['web'].address} lladdr {found[1]} dev eth0 nud permanent")
    try:
        assert not reaches(switched, "web", server)
    finally:
        switched.run("web", f"ip neigh del {to} dev eth0")
        switched.run(server, f"ip neigh del {BY_NAME['web'].address} dev eth0")


def test_a_policy_opens_what_it_accepts_and_nothing_else(routed: Hosts) -> None:
    (policy,) = read_policies(OPENED).policies
    opened = replace(routed.snapshot, policies={policy.ident: policy})
    for host in WIRE:
        routed.converge(host, opened)
    try:
        assert reaches(routed, "near", "web")
        assert not reaches(routed, "far", "web") and not reaches(routed, "web", "near")
    finally:
        for host in WIRE:
            routed.converge(host)
    assert not reaches(routed, "near", "web")


def test_a_network_is_opened_and_closed_while_it_is_used(routed: Hosts) -> None:
    opened = replace(routed.snapshot, networks={**routed.snapshot.networks, "default": replace(network(), options={})})
    for host in WIRE:
        routed.converge(host, opened)
    try:
        assert reaches(routed, "near", "web") and reaches(routed, "far", "web")
    finally:
        for host in WIRE:
            routed.converge(host)
            assert routed.converge(host) == 0
    assert not reaches(routed, "near", "web")
