# SPDX-License-Identifier: Apache-2.0
"""What isolated networks are as policies, and which rules there are for those on bridges. Packets: tests/kernel/test_apart.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from plait.model.cluster import Endpoint, Network, Node, Snapshot
from plait.plan import Local, plan_node
from plait.policy.evaluate import Packet, evaluate, world_of
from plait.policy.isolation import governed, isolations
from plait.policy.kubernetes import read_policies

A, N = IPv4Address, IPv4Network
OPEN = Network("open", N("10.28.0.0/16"), A("10.28.0.1"), 24)
SHUT = Network("shut", N("10.29.0.0/16"), A("10.29.0.1"), 24, options={"isolated": "true"})
NODE = Node("A", "a" * 8, A("198.18.0.1"), 1500, "02:00:00:00:00:01", A("10.28.1.0"))
OPENED = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: some}
spec:
  tier: Baseline
  priority: 1000
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {plait.container: s2}}}}
  ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {plait.container: s3}}}}]}]
"""


def endpoint(network: Network, last: int) -> Endpoint:
    name = f"{network.name[0]}{last}"
    address = A(int(network.subnet.network_address) + 256 + last)
    return Endpoint(name, network.name, "A", address, f"02:00:00:00:{network.vni:02x}:{last:02x}", f"pl-e{name}", "sandbox", name, name)


def cluster(*networks: Network) -> Snapshot:
    endpoints = [endpoint(network, last) for network in networks for last in (2, 3, 4)]
    return Snapshot("A", 1, {"A": NODE}, frozenset("A"), {n.name: n for n in networks}, endpoints={e.id: e for e in endpoints})


def passes(snapshot: Snapshot, source: str, destination: str) -> bool:
    return evaluate(world_of(snapshot), Packet(A(source), A(destination), "tcp", 80)).allowed


def test_neighbours_of_an_isolated_network_accept_nothing_of_each_other() -> None:
    snapshot = cluster(OPEN, SHUT)
    assert not passes(snapshot, "10.29.1.2", "10.29.1.3") and passes(snapshot, "10.28.1.2", "10.28.1.3")
    assert passes(snapshot, "203.0.113.9", "10.29.1.3") and passes(snapshot, "10.28.1.0", "10.29.1.3")
    said = evaluate(world_of(snapshot), Packet(A("10.29.1.2"), A("10.29.1.3"))).sides[1]
    assert said.policy == ("_cluster", "network:shut") and said.where == "isolated"


def test_whatever_policy_is_written_goes_before_the_default() -> None:
    (policy,) = read_policies(OPENED).policies
    snapshot = replace(cluster(SHUT), policies={policy.ident: policy})
    assert passes(snapshot, "10.29.1.3", "10.29.1.2") and not passes(snapshot, "10.29.1.4", "10.29.1.2")


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (OPEN, False),
        (SHUT, True),
        (replace(SHUT, backend="wireguard"), True),
        (replace(SHUT, backend="bridge"), False),
        (replace(SHUT, options={"isolated": "true", "layer2": "true"}), False),
        (replace(SHUT, options={"isolated": "false"}), False),
    ],
)
def test_only_networks_that_are_routed_have_it_as_a_policy(network: Network, wanted: bool) -> None:
    assert bool(isolations([network])) == wanted == governed(cluster(network))


def test_ports_of_a_bridge_that_is_isolated_are_and_no_host_routes_between_them() -> None:
    snapshot = cluster(replace(SHUT, options={"isolated": "true", "layer2": "true"}, vni=7))
    lines = [str(obj) for obj in plan_node(snapshot, Local()).values()]
    assert sum("isolated=True" in line for line in lines) == 3
    assert sum("ether daddr != @host_macs drop" in line for line in lines) == 3
    assert sum("ip saddr 10.29.0.0/16 ip saddr != @host_addresses ip daddr 10.29.0.0/16 drop" in line for line in lines) == 1
    opened = [str(obj) for obj in plan_node(cluster(replace(SHUT, options={"layer2": "true"}, vni=7)), Local()).values()]
    assert not [line for line in opened if "isolated=True" in line or "host_macs" in line or "host_addresses" in line]
