# SPDX-License-Identifier: Apache-2.0
"""IPv6 beside IPv4 on two hosts, each with the plan of its node: what packets do. Hosts and wire are those of `test_datapath`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from tests.kernel.test_datapath import ENDPOINTS, NETWORKS, NODES, WAIT_S, Hosts, counted
from tests.support.kernel import within

from plait.ipam import image
from plait.kernel.linux import create_netns, delete_netns
from plait.lab.process import until
from plait.model.cluster import Endpoint, PortMapping
from plait.policy.evaluate import Packet, evaluate, world_of
from plait.policy.kubernetes import read_policies

pytestmark = pytest.mark.root
A6, N6 = IPv6Address, IPv6Network
REFUSED_S = 0.3
"""Patience with what shall not pass."""
DUAL = tuple(replace(n, subnet6=N6(f"fd00:{28 + i}::/64"), gateway6=A6(f"fd00:{28 + i}::1")) for i, n in enumerate(NETWORKS))
"""default, other, inner"""
WIRE = {"A": A6("fd99::1"), "B": A6("fd99::2")}
SIX_ONLY = (PortMapping("tcp", 8082, 80, A6("::")), PortMapping("tcp", 8083, 80, WIRE["A"]), PortMapping("tcp", 8084, 80, A6("fd99::77")))
BY_NAME: Mapping[str, Endpoint] = {
    e.name: replace(e, address6=image(next(n for n in DUAL if n.name == e.network), e.address)) for e in ENDPOINTS
}


@pytest.fixture(scope="module", params=[False, True], ids=["slow", "fast"])
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with dual_hosts(tmp_path_factory.mktemp("dual"), request.param) as made:
        yield made


@contextlib.contextmanager
def dual_hosts(folder: Path, fast: bool) -> Iterator[Hosts]:
    """Both with their plans, their networks and containers with an address of each family."""
    made = Hosts(folder, fast)
    made.snapshot = replace(
        made.snapshot,
        networks={n.name: n for n in DUAL},
        endpoints={
            e.id: replace(e, address6=BY_NAME[e.name].address6, ports=(*e.ports, *SIX_ONLY) if e.name == "web" else e.ports)
            for e in made.snapshot.endpoints.values()
        },
    )
    try:
        for path in made.paths.values():
            create_netns(path)
        made.run("A", f"ip link add wire type veth peer name wire netns {made.paths['B']}")
        for number, (name, address) in enumerate(WIRE.items(), 1):
            made.run(name, "sysctl -qw net.ipv6.icmp.ratelimit=0")
            made.run(name, "ip link set lo up")
            made.run(name, "ip link set wire up")
            made.run(name, f"ip addr add 198.18.0.{number}/24 dev wire")
            made.run(name, f"ip addr add {address}/64 dev wire nodad")
        until("the wire itself is ready", lambda: made.pings("A", WIRE["B"]), 5)  # the kernel tells IPv6 of a new link within a second
        for name in WIRE:
            made.converge(name)
            assert made.converge(name) == 0
        yield made
    finally:
        for path in made.paths.values():
            delete_netns(path)


def address(name: str) -> IPv6Address:
    found = BY_NAME[name].address6
    assert found is not None
    return found


def test_a_packet_passes_at_once_after_an_attach(hosts: Hosts) -> None:
    """First in the file on purpose: nobody has waited for a neighbour, a duplicate or a router yet."""
    assert hosts.pings("web", address("far"))
    assert "tentative" not in hosts.run("web", "ip -6 addr") + hosts.run("A", "ip -6 addr show dev pl-eweb scope global")


REACH: Mapping[tuple[str, str], bool] = {
    ("web", "near"): True,
    ("web", "far"): True,
    ("far", "web"): True,
    ("stranger", "foreign"): True,
    ("safe", "vault"): True,
    ("web", "stranger"): False,
    ("web", "foreign"): False,
    ("foreign", "near"): False,
    ("safe", "web"): False,
    ("web", "safe"): False,
    ("vault", "far"): False,
}


@pytest.mark.parametrize(("client", "to"), REACH, ids="-".join)
def test_containers_of_one_network_reach_each_other_and_no_others(hosts: Hosts, client: str, to: str) -> None:
    wanted = address(client) if REACH[client, to] else None
    seen = hosts.connects(client, address(to), 80, to, wait_s=WAIT_S if wanted else REFUSED_S)
    assert seen == wanted, "and they see each other's own address"


@pytest.mark.parametrize("host", ["A", "B"])
@pytest.mark.parametrize("to", ["web", "far"])
def test_hosts_reach_containers(hosts: Hosts, host: str, to: str) -> None:
    assert hosts.pings(host, address(to))


def test_the_gateway_of_each_host_answers_its_containers(hosts: Hosts) -> None:
    for name in ("web", "far", "safe"):
        gateway = next(n.gateway6 for n in DUAL if n.name == BY_NAME[name].network)
        assert gateway is not None and hosts.pings(name, gateway)


def test_a_container_leaves_under_the_address_of_its_host(hosts: Hosts) -> None:
    assert hosts.connects("web", WIRE["B"], 9000, "B", 9000) == WIRE["A"]


def test_a_container_of_an_internal_network_does_not_leave(hosts: Hosts) -> None:
    assert "default" not in hosts.run("safe", "ip -6 route")
    hosts.run("safe", "ip -6 route add default via fd00:30::1 dev eth0")
    assert not hosts.pings("safe", WIRE["B"]), "even with a route that somebody gave it"


@pytest.mark.parametrize(("client", "port"), [*((client, 8080) for client in ("A", "B", "near", "web", "far")), ("B", 8082), ("B", 8083)])
def test_a_published_port_answers(hosts: Hosts, client: str, port: int) -> None:
    assert hosts.connects(client, WIRE["A"], port) is not None


def test_what_is_published_on_ipv6_alone_does_not_answer_on_ipv4(hosts: Hosts) -> None:
    for port in (8082, 8083):
        assert hosts.connects("B", IPv4Address("198.18.0.1"), port, wait_s=REFUSED_S) is None
    assert hosts.connects("B", IPv4Address("198.18.0.1"), 8080) is not None


@pytest.mark.parametrize(("client", "port"), [("B", 8081), ("B", 80), ("B", 8084)])
def test_what_is_not_published_there_does_not(hosts: Hosts, client: str, port: int) -> None:
    assert hosts.connects(client, WIRE["A"], port, wait_s=REFUSED_S) is None


def test_the_loopback_of_the_host_refuses_at_once_so_that_a_client_goes_on_to_ipv4(hosts: Hosts) -> None:
    with hosts.socket("A", socket.AF_INET6) as caller, pytest.raises(ConnectionRefusedError):
        caller.connect(("::1", 8080))
    assert hosts.connects("A", IPv4Address("127.0.0.1"), 8080) is not None


@pytest.mark.parametrize("nobody", ["fd00:28::909", "fd00:28::177", "fd00:28:0:0:1::1"])
def test_an_address_that_nobody_holds_is_refused_at_once(hosts: Hosts, nobody: str) -> None:
    with hosts.socket("A", socket.AF_INET6) as caller, pytest.raises(OSError, match=r"No route to host|Network is unreachable"):
        caller.connect((nobody, 80))


def test_packets_are_as_large_as_the_tunnel_lets_through_and_no_larger(hosts: Hosts) -> None:
    far = address("far")
    assert hosts.pings("web", far, f"-M do -s {1450 - 48}")
    assert not hosts.pings("web", far, f"-M do -s {1451 - 48}")
    assert hosts.connects("far", address("web"), 80, size=300_000) is not None


def test_a_path_that_is_smaller_towards_one_peer_is_told_to_the_sender(hosts: Hosts) -> None:
    narrow = replace(hosts.snapshot, nodes={"A": NODES[0], "B": replace(NODES[1], mtu=1400)})
    hosts.converge("A", narrow)
    try:
        assert not hosts.pings("web", address("far"), f"-M do -s {1400 - 48}")
        assert "mtu 1350" in hosts.run("web", f"ip -6 route get {address('far')}"), "the host said how long a packet may be"
        assert hosts.connects("web", address("far"), 80, "far", size=100_000) is not None
    finally:
        hosts.converge("A")
        hosts.forget_paths("web")
    assert "mtu" not in hosts.run("web", f"ip -6 route get {address('far')}"), "and it can be forgotten before ten minutes are over"


def test_a_packet_whose_time_is_over_is_answered(hosts: Hosts) -> None:
    command = within(hosts.paths["web"], f"ping -c1 -W2 -t1 {address('far')}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Time exceeded: Hop limit" in done.stdout


@pytest.mark.parametrize(("client", "server"), [("web", "far"), ("far", "web"), ("near", "web"), ("web", "near")])
def test_the_fast_path_leaves_the_stack_of_the_host_out(hosts: Hosts, client: str, server: str) -> None:
    to = address(server)
    with counted(hosts, to) as seen:
        assert hosts.connects(client, to, 7000, server, 7000, size=100_000) is not None
        assert (seen() == 0) == hosts.fast


@pytest.mark.parametrize("guard", [True, False])
def test_an_address_that_is_not_its_own_gets_no_fast_way(hosts: Hosts, guard: bool) -> None:
    hosts.run("web", "ip addr add fd00:28::177/128 dev eth0 nodad")
    hosts.guard = guard
    try:
        hosts.converge("A")
        with counted(hosts, address("far"), "fd00:28::177") as seen:
            hosts.pings("web", address("far"), "-I fd00:28::177")
            assert (seen() == 0) == guard, "nor any way"
    finally:
        hosts.guard = True
        hosts.converge("A")
        hosts.run("web", "ip addr del fd00:28::177/128 dev eth0")


@pytest.mark.parametrize(
    "harm",
    [
        "nft flush ruleset",
        "ip link del pl-x1",
        "ip link del pl-eweb",
        "ip link set pl-eweb down",
        "sh -c 'sysctl -qw net.ipv6.conf.default.disable_ipv6=1; ip link del pl-eweb'",
        "ip -6 route flush proto 112",
        "ip -6 neigh flush dev pl-eweb nud permanent",
        "ip -6 addr flush dev pl-eweb scope global",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
    ],
)
def test_two_passes_after_any_harm_all_is_well(hosts: Hosts, harm: str) -> None:
    hosts.run("A", harm)
    for _ in range(2):
        hosts.converge("A")
    assert hosts.converge("A") == 0
    assert hosts.connects("far", address("web"), 80) == address("far")
    assert hosts.connects("B", WIRE["A"], 8080) is not None
    assert hosts.connects("web", address("stranger"), 80, "stranger", wait_s=REFUSED_S) is None


def test_a_host_that_hears_its_routers_hears_them_still_when_it_forwards(hosts: Hosts) -> None:
    hosts.run("B", "sysctl -qw net.ipv6.conf.all.forwarding=0")
    hosts.run("B", "sysctl -qw net.ipv6.conf.wire.accept_ra=1 net.ipv6.conf.lo.accept_ra=0")
    hosts.converge("B")
    assert hosts.run("B", "sysctl -n net.ipv6.conf.wire.accept_ra net.ipv6.conf.lo.accept_ra").split() == ["2", "0"]


POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {plait.container: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{ipBlock: {cidr: "fd00:28::/64", except: ["%s/128"]}}, {podSelector: {matchLabels: {plait.container: far}}}]
    ports: [{port: 80}]
"""


def test_policies_hold_in_both_families(hosts: Hosts) -> None:
    """By address in the one, by label in both; `near` is excluded, `far` is named."""
    web, near = BY_NAME["web"], BY_NAME["near"]
    policies = read_policies(POLICY % near.address6).policies
    snapshot = replace(hosts.snapshot, policies={policy.ident: policy for policy in policies})
    world = world_of(snapshot)
    try:
        for name in WIRE:
            hosts.converge(name, snapshot)
            assert hosts.converge(name, snapshot) == 0
        for client in ("near", "far"):
            for to, source in ((web.address6, BY_NAME[client].address6), (web.address, BY_NAME[client].address)):
                assert to is not None and source is not None
                for port in (80, 81):
                    wanted = evaluate(world, Packet(source, to, "tcp", port)).allowed
                    assert wanted == (client == "far" and port == 80)
                    patience = WAIT_S if wanted else REFUSED_S
                    assert (hosts.connects(client, to, port, "web", port, wait_s=patience) is not None) == wanted, (client, to, port)
    finally:
        for name in WIRE:
            hosts.converge(name)
