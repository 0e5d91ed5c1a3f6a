# SPDX-License-Identifier: Apache-2.0
"""Policies in the kernel: two hosts with the plans of their nodes, real packets, and what the reference says of each."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.kernel.test_datapath import BY_NAME, NETWORKS, WIRE, Hosts, counted, two_hosts
from tests.support.policies import NAMED

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, inside
from plait.model.cluster import Snapshot
from plait.policy.evaluate import Packet, evaluate, world_of
from plait.policy.kubernetes import read_policies
from plait.policy.tally import rulings

pytestmark = pytest.mark.root
LABELS = {
    "web": {"app": "web", "plait.port.http": "80"},
    "near": {"app": "client", "role": "near"},
    "far": {"app": "client", "plait.namespace": "other"},
}
WAIT_S = 0.25
HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  podSelector: {matchLabels: {app: web}}\n"
TIER = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: t}\nspec:\n  tier: %s\n  priority: 1\n"
CASES = {
    "nobody comes in": HEAD + "  ingress: []\n",
    "from one label of its namespace": HEAD + "  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]\n",
    "from any namespace, one port": HEAD
    + "  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]\n",
    "from another namespace by its name": HEAD
    + "  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]\n",
    "a named port": HEAD + "  ingress: [{ports: [{port: http}]}]\n",
    "a range of ports": HEAD + "  ingress: [{ports: [{port: 81, endPort: 90}]}]\n",
    "from the wire but for one host": HEAD
    + "  ingress: [{from: [{ipBlock: {cidr: 198.18.0.0/24, except: [198.18.0.1/32]}}, {podSelector: {matchLabels: {role: near}}}]}]\n",
    "from the network but for one address": HEAD + "  ingress: [{from: [{ipBlock: {cidr: 10.28.0.0/16, except: [10.28.1.3/32]}}]}]\n",
    "nothing goes out": HEAD + "  policyTypes: [Egress]\n",
    "out to one label": HEAD
    + "  policyTypes: [Egress]\n  egress: [{to: [{podSelector: {matchLabels: {role: near}}}], ports: [{port: 80}]}]\n",
    "the administrator denies": TIER % "Admin" + "  subject: {namespaces: {}}\n"
    "  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: near}}}}]}]\n",
    "the administrator denies all but one port, a policy less": TIER % "Admin" + "  subject: {namespaces: {}}\n  ingress:\n"
    "  - {action: Pass, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}\n"
    "  - {action: Deny, from: [{namespaces: {}}]}\n---\n" + HEAD + "  ingress: [{from: [{podSelector: {matchLabels: {role: near}}}]}]\n",
    "a baseline denies where nothing else is said": TIER % "Baseline"
    + "  subject: {namespaces: {}}\n  ingress: [{action: Deny, from: [{namespaces: {}}]}]\n---\n"
    + HEAD
    + "  ingress: [{}]\n",
}


@pytest.fixture(scope="module", params=["slow", "shortcut"])
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("policy"), request.param) as made:
        made.snapshot = labelled(made.snapshot)
        yield made


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """The network of `web` and `near` is a bridge of their host."""
    network = replace(NETWORKS[0], backend="bridge")
    with two_hosts(tmp_path_factory.mktemp("switched"), "fast", network) as made:
        made.snapshot = labelled(made.snapshot)
        yield made


def labelled(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, endpoints={key: replace(e, labels=LABELS.get(e.name, {})) for key, e in snapshot.endpoints.items()})


def under(hosts: Hosts, text: str) -> Snapshot:
    """The hosts with the policies of a file."""
    return replace(hosts.snapshot, policies={policy.ident: policy for policy in read_policies(text).policies})


@contextlib.contextmanager
def in_force(hosts: Hosts, text: str) -> Iterator[Snapshot]:
    """What the policies of a file make of both hosts, for a while; without them the plan is what it was."""
    snapshot = under(hosts, text)
    try:
        for name in WIRE:
            assert hosts.converge(name, snapshot) >= 0
            assert hosts.converge(name, snapshot) == 0, "the kernel gives back what it was given"
        yield snapshot
    finally:
        for name in WIRE:
            hosts.converge(name)
            assert hosts.converge(name) == 0


@pytest.mark.parametrize("case", CASES)
def test_connections_are_what_the_reference_says(hosts: Hosts, case: str) -> None:
    with in_force(hosts, CASES[case]) as snapshot:
        world = world_of(snapshot)
        for client, server in itertools.permutations(LABELS, 2):
            for port in (80, 81):
                to = BY_NAME[server].address
                wanted = evaluate(world, Packet(BY_NAME[client].address, to, "tcp", port)).allowed
                seen = hosts.connects(client, to, port, server, port, wait_s=1 if wanted else WAIT_S)
                assert (seen is not None) == wanted, (client, server, port)
        outside = evaluate(world, Packet(WIRE["B"], BY_NAME["web"].address, "tcp", 80)).allowed
        assert (hosts.connects("B", WIRE["A"], 8080, wait_s=1 if outside else WAIT_S) is not None) == outside, "by the published port"
        assert hosts.connects("A", BY_NAME["web"].address, 80) is not None, "its own host is never kept out"
        assert hosts.connects("web", WIRE["A"], 8080) is not None, "nor is it kept from itself"
        assert hosts.pings("web", WIRE["A"]), "nor from its host"


@pytest.mark.parametrize("case", ["nobody comes in", "a named port"])
def test_a_ping_is_nothing_that_has_a_port(hosts: Hosts, case: str) -> None:
    with in_force(hosts, CASES[case]):
        for client in ("near", "far"):
            assert not hosts.pings(client, BY_NAME["web"].address)
            assert hosts.pings("web", BY_NAME[client].address), "answers belong to what it sent itself"


def test_datagrams_are_judged_and_their_answers_pass(hosts: Hosts) -> None:
    with in_force(hosts, HEAD + "  policyTypes: [Ingress, Egress]\n  ingress: [{ports: [{protocol: UDP, port: 9999}]}]\n"):
        for client in ("near", "far"):
            with hosts.udp("web") as ear, hosts.udp(client) as mouth:
                ear.bind(("0.0.0.0", 9999))
                mouth.sendto(b"x", (str(BY_NAME["web"].address), 9999))
                data, peer = ear.recvfrom(9)
                ear.sendto(data, peer)
                assert mouth.recv(9) == b"x"
    with in_force(hosts, HEAD + "  ingress: [{ports: [{protocol: UDP, port: 9998}]}]\n"):
        for client in ("near", "far"):
            assert not hosts.hears("web", client, BY_NAME[client].address)


@contextlib.contextmanager
def connected(hosts: Hosts, client: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection to `web`, port 7001; the client's first."""
    with hosts.socket("web") as listener, hosts.socket(client) as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 7001))
        listener.listen()
        caller.connect((str(BY_NAME["web"].address), 7001))
        answerer, _ = listener.accept()
        with answerer:
            answerer.settimeout(2)
            yield caller, answerer


@pytest.mark.parametrize("client", ["near", "far"])
def test_a_connection_that_was_let_in_lives_on_and_a_new_one_is_judged(hosts: Hosts, client: str) -> None:
    closed = under(hosts, CASES["nobody comes in"])
    with in_force(hosts, HEAD + "  ingress: [{}]\n"), connected(hosts, client) as (caller, answerer):
        for name in WIRE:
            hosts.converge(name, closed)
        caller.sendall(b"still")
        assert answerer.recv(9) == b"still"
        answerer.sendall(b"here")
        assert caller.recv(9) == b"here"
        with hosts.socket(client, wait_s=WAIT_S) as late, pytest.raises(OSError, match="timed out"):
            late.connect((str(BY_NAME["web"].address), 7001))


@pytest.mark.parametrize("client", ["near", "far"])
@pytest.mark.parametrize("allowed", [True, False])
def test_a_connection_that_nobody_has_judged_is_judged_by_its_next_packet(hosts: Hosts, client: str, allowed: bool) -> None:
    with connected(hosts, client) as (caller, answerer):
        caller.sendall(b"before")
        assert answerer.recv(9) == b"before"
        with in_force(hosts, HEAD + "  ingress: [{}]\n" if allowed else CASES["nobody comes in"]):
            caller.sendall(b"after")
            answerer.settimeout(2 if allowed else WAIT_S)
            if allowed:
                assert answerer.recv(9) == b"after"
            else:
                with pytest.raises(TimeoutError):
                    answerer.recv(9)


def test_whom_no_policy_selects_keeps_the_fast_path(hosts: Hosts) -> None:
    """`near` and `far` are in no policy: what they send each other still meets no hook; what goes to `web` does."""
    far, web = BY_NAME["far"].address, BY_NAME["web"].address
    with in_force(hosts, HEAD + "  ingress: [{}]\n"):
        for client in ("near", "far"):
            hosts.pings(client, far if client == "near" else BY_NAME["near"].address)
        with counted(hosts, far) as seen:
            assert hosts.connects("near", far, 7000, "far", 7000) is not None
            assert (seen() == 0) == hosts.fast
        with counted(hosts, web) as seen:
            assert hosts.connects("near", web, 7000, "web", 7000) is not None
            assert seen() > 0


@pytest.mark.parametrize("case", ["nobody comes in", "from one label of its namespace", "out to one label"])
def test_what_a_bridge_switches_is_judged_where_the_host_sees_it(switched: Hosts, case: str) -> None:
    """As it does by default (net.bridge.bridge-nf-call-iptables)."""
    for client, server in (("near", "web"), ("web", "near")):
        assert switched.connects(client, BY_NAME[server].address, 80, server) is not None, "they reach each other without"
    with in_force(switched, CASES[case]) as snapshot:
        world = world_of(snapshot)
        for client, server in (("near", "web"), ("web", "near")):
            to = BY_NAME[server].address
            wanted = evaluate(world, Packet(BY_NAME[client].address, to, "tcp", 80)).allowed
            assert (switched.connects(client, to, 80, server, wait_s=1 if wanted else WAIT_S) is not None) == wanted, (client, server)


def test_a_name_opens_what_dns_gave_for_it_while_that_counts(hosts: Hosts) -> None:
    """`web` goes out of the cluster, to an address of B's link."""
    to = WIRE["B"]
    with in_force(hosts, NAMED.replace("443", "80")) as snapshot:
        answered = replace(snapshot, answered={to: frozenset({"www.example.org"})})
        assert hosts.connects("web", to, 80, "B", wait_s=WAIT_S) is None
        assert hosts.converge("A", answered) > 0 and hosts.converge("A", answered) == 0
        assert hosts.connects("web", to, 80, "B") is not None
        assert hosts.connects("web", to, 81, "B", 81, wait_s=WAIT_S) is None and not hosts.pings("web", to)
        with hosts.socket("B") as listener, hosts.socket("web") as caller:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", 80))
            listener.listen()
            caller.connect((str(to), 80))
            answerer, _ = listener.accept()
            with answerer:
                assert hosts.converge("A", snapshot) > 0 and hosts.converge("A", snapshot) == 0
                caller.sendall(b"still here")
                assert answerer.recv(99) == b"still here"
        assert hosts.connects("web", to, 80, "B", wait_s=WAIT_S) is None, "a new one is judged anew"


def judged(hosts: Hosts, host: str) -> dict[Packet, int]:
    def work() -> dict[Packet, int]:
        with hosts.paths[host].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel()) as kernel:
            return kernel.judged()

    return in_thread(work)


@pytest.mark.parametrize("client", ["near", "far"])
def test_connections_are_counted_where_a_policy_judges_them_and_no_further_packets(hosts: Hosts, client: str) -> None:
    one, web = BY_NAME[client].address, BY_NAME["web"].address
    with in_force(hosts, HEAD + "  ingress: [{ports: [{port: 80}]}]\n") as snapshot:
        for _ in range(3):
            assert hosts.connects(client, web, 80, "web", 80, size=100_000) is not None
        assert hosts.connects(client, web, 81, "web", 81, wait_s=WAIT_S) is None
        assert not hosts.pings(client, web)
        seen = judged(hosts, "A")
        assert seen[Packet(one, web, "tcp", 80)] == 3 and seen[Packet(one, web, "tcp", 81)] > 0 and seen[Packet(one, web, "icmp")] > 0
        assert not [packet for packet in seen if web not in (packet.source, packet.destination)], "nobody else is counted"
        assert [hosts.converge(name, snapshot) for name in WIRE] == [0, 0], "and what is counted is nothing to be undone"


@pytest.mark.parametrize("client", ["near", "far"])
def test_a_policy_to_audit_drops_nothing_and_what_it_would_is_seen(hosts: Hosts, client: str) -> None:
    audit = CASES["nobody comes in"].replace("{name: p}", '{name: p, annotations: {plait.audit: "true"}}')
    web = BY_NAME["web"].address
    with in_force(hosts, audit) as snapshot:
        assert hosts.connects(client, web, 80, "web", 80) is not None and hosts.pings(client, web)
        packet = Packet(BY_NAME[client].address, web, "tcp", 80)
        assert judged(hosts, "A")[packet] == 1
        would = [ruling for ruling in rulings(world_of(snapshot), "A", packet) if ruling.audit]
        assert [(ruling.allowed, ruling.policies) for ruling in would] == [(False, (("default", "p"),))]
