# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses of services in the kernel: two hosts with the plans of their nodes, real packets on every way that they can take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from tests.kernel.test_datapath import BY_NAME, NODES, WAYS, Hosts, two_hosts
from tests.kernel.test_datapath import WIRE as WIRE4
from tests.kernel.test_dual import BY_NAME as DUAL_BY_NAME
from tests.kernel.test_dual import DUAL
from tests.kernel.test_dual import WIRE as WIRE6

from plait.agent.kernelwork import KernelWork
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, inside
from plait.lab.process import until
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node
from plait.policy.kubernetes import read_policies

pytestmark = pytest.mark.root
A, A6 = IPv4Address, IPv6Address
PORT, TARGET = 80, 8080
VIP: Mapping[int, IPAddress] = {4: A("10.27.3.4"), 6: A6("fd55:aa3d:5f3e::304")}
NOBODY: Mapping[int, IPAddress] = {4: A("10.27.99.99"), 6: A6("fd55:aa3d:5f3e::6363")}
WIRE: Mapping[int, Mapping[str, IPAddress]] = {4: WIRE4, 6: WIRE6}
CLIENTS, HOSTS = ("near", "web", "far"), ("A", "B")
HOST: Mapping[int, Mapping[str, IPAddress | None]] = {4: {n.name: n.tunnel for n in NODES}, 6: {n.name: n.tunnel6 for n in NODES}}
PORTS = ServicePort("tcp", PORT, TARGET, published=9090), ServicePort("udp", 53, 5353)
SERVICE = Service("shop", "default", A("10.27.3.4"), PORTS, {"app": "shop"})


@pytest.fixture(scope="module", params=[*((way, 4) for way in WAYS), ("slow", 6), ("shortcut", 6)], ids=lambda one: f"{one[0]}-ipv{one[1]}")
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Of IPv6, the networks have both families; the service too, and it is asked by that one."""
    way, version = request.param
    folder = tmp_path_factory.mktemp("vips")
    with two_hosts(folder, way, *DUAL, before=have_ipv6) if version == 6 else two_hosts(folder, way) as made:
        yield made


def have_ipv6(hosts: Hosts) -> None:
    for name, address in WIRE6.items():
        hosts.run(name, "sysctl -qw net.ipv6.icmp.ratelimit=0 net.ipv6.conf.wire.keep_addr_on_down=1")
        hosts.run(name, f"ip addr add {address}/64 dev wire nodad")
    endpoints = {key: replace(e, address6=DUAL_BY_NAME[key].address6) for key, e in hosts.snapshot.endpoints.items()}
    nodes = {name: replace(node, further=(WIRE6[name],)) for name, node in hosts.snapshot.nodes.items()}
    hosts.snapshot = replace(hosts.snapshot, endpoints=endpoints, nodes=nodes)
    hosts.version = 6
    wait_for_wire(hosts)


def wait_for_wire(hosts: Hosts) -> None:
    """Of a link that has just gone up IPv6 has no link-local address for a second, and may not find who is behind it."""
    if hosts.version == 6:
        of_link = "ip -6 -o addr show dev wire scope link"
        until(
            "the wire has its own addresses",
            lambda: all("fe80" in (said := hosts.run(name, of_link)) and "tentative" not in said for name in HOSTS),
            5,
        )
        until("the wire itself is ready", lambda: hosts.pings("A", WIRE6["B"]), 5)


def vip(hosts: Hosts) -> IPAddress:
    return VIP[hosts.version]


def wire(hosts: Hosts) -> Mapping[str, IPAddress]:
    return WIRE[hosts.version]


def own(hosts: Hosts, name: str) -> IPAddress:
    """The address of a container."""
    found = DUAL_BY_NAME[name].address6 if hosts.version == 6 else BY_NAME[name].address
    assert found is not None
    return found


def serving(hosts: Hosts, *names: str, service: Service = SERVICE) -> Snapshot:
    """`names` are the containers behind the service."""
    found = {key: replace(e, labels={"app": "shop"} if e.name in names else {}) for key, e in hosts.snapshot.endpoints.items()}
    return replace(hosts.snapshot, endpoints=found, services={service.ident: service})


def enforce(hosts: Hosts, snapshot: Snapshot) -> None:
    for name in HOSTS:
        passed(hosts, name, snapshot)
        assert hosts.converge(name, snapshot) == 0, "the kernel gives back what it was given"


def passed(hosts: Hosts, node: str, snapshot: Snapshot, *silent: str) -> None:
    """One pass as the agent makes it, with what becomes of connections. `silent`: lost nodes whose hosts do not answer."""
    local = Local(fast_path=hosts.fast, shortcut=hosts.shortcut, clients=hosts.clients, silent=frozenset(silent))

    async def work(kernel: LinuxKernel) -> None:
        door = KernelWork(kernel)
        assert not (await door.converge(lambda: plan_node(replace(snapshot, me=node), local), may_delete=True)).failed
        door.close()

    def there() -> None:
        with hosts.paths[node].open() as file, inside(file.fileno()):
            asyncio.run(work(LinuxKernel()))

    in_thread(there)


@contextlib.contextmanager
def listening(hosts: Hosts, names: Sequence[str], port: int = TARGET) -> Iterator[dict[str, socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = {name: stack.enter_context(hosts.socket(name)) for name in names}
        for listener in made.values():
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen(256)
            listener.setblocking(False)
        yield made


def spread(hosts: Hosts, client: str, listeners: dict[str, socket.socket], times: int) -> Counter[str]:
    """Who accepted so many connections."""
    found: Counter[str] = Counter()
    for _ in range(times):
        with hosts.socket(client) as caller:
            caller.connect((str(vip(hosts)), PORT))
            for name, listener in listeners.items():
                with contextlib.suppress(BlockingIOError):
                    answerer, _ = listener.accept()
                    answerer.close()
                    found[name] += 1
    return found


@pytest.mark.parametrize("client", [*CLIENTS, *HOSTS])
@pytest.mark.parametrize("backend", ["near", "far"])
def test_everybody_reaches_a_backend_and_it_sees_who_comes(hosts: Hosts, client: str, backend: str) -> None:
    enforce(hosts, serving(hosts, backend))
    seen = hosts.connects(client, vip(hosts), PORT, backend, TARGET, size=200_000)
    assert seen is not None
    if client != backend:
        assert seen == (HOST[hosts.version][client] if client in HOSTS else own(hosts, client))


@pytest.mark.parametrize("client", ["near", "far"])
def test_a_backend_is_reached_by_its_own_address_too(hosts: Hosts, client: str) -> None:
    enforce(hosts, serving(hosts, "near", "far", "web"))
    for backend in ("near", "far", "web"):
        assert hosts.connects(client, own(hosts, backend), TARGET, backend, TARGET) == own(hosts, client) or client == backend


@pytest.mark.parametrize("backend", ["near", "far"])
def test_a_firewall_that_drops_what_conntrack_finds_invalid_leaves_its_own_address_alone(hosts: Hosts, backend: str) -> None:
    """Both directions of a connection are tracked, or none."""
    enforce(hosts, serving(hosts, "near", "far"))
    strict = (
        "add table ip strict; add chain ip strict f { type filter hook forward priority 10; }; add rule ip strict f ct state invalid drop"
    )
    for name in HOSTS:
        hosts.run(name, f"nft '{strict}'")
    try:
        for to, port in ((own(hosts, backend), TARGET), (vip(hosts), PORT)):
            enforce(hosts, serving(hosts, backend))
            for client in ("web", "far" if backend == "near" else "near"):
                assert hosts.connects(client, to, port, backend, TARGET, size=50_000) is not None, (client, to)
    finally:
        for name in HOSTS:
            hosts.run(name, "nft delete table ip strict")


def test_connections_are_spread_evenly(hosts: Hosts) -> None:
    enforce(hosts, serving(hosts, "near", "far", "web"))
    with listening(hosts, ("near", "far", "web")) as listeners:
        found = spread(hosts, "A", listeners, 300)
    assert found.total() == 300
    assert all(60 < count < 140 for count in found.values()), found


def test_a_weight_is_a_share(hosts: Hosts) -> None:
    snapshot = serving(hosts, "near", "far")
    heavy = replace(snapshot.endpoints["far"], labels={"app": "shop", "plait.vip.weight": "3"})
    enforce(hosts, replace(snapshot, endpoints={**snapshot.endpoints, "far": heavy}))
    with listening(hosts, ("near", "far")) as listeners:
        found = spread(hosts, "web", listeners, 200)
    assert 120 < found["far"] < 180, found


def test_with_affinity_a_client_keeps_to_one(hosts: Hosts) -> None:
    enforce(hosts, serving(hosts, "near", "far", "web", service=replace(SERVICE, affinity=True)))
    with listening(hosts, ("near", "far", "web")) as listeners:
        for client in ("A", "far"):
            assert len(spread(hosts, client, listeners, 20)) == 1


def test_local_first_means_this_host(hosts: Hosts) -> None:
    enforce(hosts, serving(hosts, "near", "far", service=replace(SERVICE, local_first=True)))
    with listening(hosts, ("near", "far")) as listeners:
        assert spread(hosts, "web", listeners, 20) == {"near": 20}
        assert spread(hosts, "B", listeners, 20) == {"far": 20}


@pytest.mark.parametrize("client", ["web", "far"])
def test_one_that_drains_keeps_what_it_has_and_gets_no_more(hosts: Hosts, client: str) -> None:
    enforce(hosts, serving(hosts, "near"))
    with listening(hosts, ("near", "far")) as listeners, hosts.socket(client) as caller:
        caller.connect((str(vip(hosts)), PORT))
        answerer, _ = listeners["near"].accept()
        with answerer:
            enforce(hosts, serving(hosts, "near", "far", service=replace(SERVICE, drained=("A/near",))))
            assert spread(hosts, client, listeners, 20) == {"far": 20}
            caller.sendall(b"x")
            answerer.settimeout(1)
            assert answerer.recv(1) == b"x"


@pytest.mark.parametrize("client", ["web", "A", "far"])
def test_what_nobody_stands_for_is_refused_at_once(hosts: Hosts, client: str) -> None:
    enforce(hosts, serving(hosts))
    for to, port in ((vip(hosts), PORT), (vip(hosts), 81), (NOBODY[hosts.version], 80)):
        with hosts.socket(client) as caller, pytest.raises(ConnectionRefusedError):
            caller.connect((str(to), port))


@pytest.mark.parametrize("backend", ["near", "far"])
def test_networks_stay_apart(hosts: Hosts, backend: str) -> None:
    enforce(hosts, serving(hosts, backend))
    with listening(hosts, [backend]), hosts.socket("stranger") as caller, pytest.raises(ConnectionRefusedError):
        caller.connect((str(vip(hosts)), PORT))


@pytest.mark.parametrize("client", ["web", "far", "A"])
def test_datagrams_go_to_one_and_come_back_from_the_virtual_address(hosts: Hosts, client: str) -> None:
    enforce(hosts, serving(hosts, "near"))
    with hosts.udp("near") as ear, hosts.udp(client) as mouth:
        ear.bind(("", 5353))
        for size in (1, 4000):  # the second in fragments
            mouth.sendto(b"x" * size, (str(vip(hosts)), 53))
            data, peer = ear.recvfrom(5000)
            ear.sendto(data, peer)
            data, source = mouth.recvfrom(5000)
            assert (len(data), source[:2]) == (size, (str(vip(hosts)), 53))


def without(snapshot: Snapshot, name: str) -> Snapshot:
    """What is left when a container was killed: its endpoint is gone. Its namespace stays as it was, so that it says nothing itself."""
    return replace(snapshot, endpoints={key: e for key, e in snapshot.endpoints.items() if e.name != name})


@pytest.mark.parametrize(
    ("client", "drained", "others"),
    [("web", (), ()), ("far", ("A/near",), ()), ("A", (), ("far",)), ("far", (), ("far",)), ("web", ("A/near",), ("far",))],
    ids=["alone", "drained", "one of two", "another host's", "drained of two"],
)
def test_a_connection_to_one_that_is_gone_is_reset_at_its_next_packet(
    hosts: Hosts, client: str, drained: tuple[str, ...], others: tuple[str, ...]
) -> None:
    """It is silent, not refusing: nobody but this host could say that it is gone."""
    enforce(hosts, serving(hosts, "near"))
    with listening(hosts, ("near", *others)) as listeners, hosts.socket(client) as caller:
        caller.connect((str(vip(hosts)), PORT))
        answerer, _ = listeners["near"].accept()
        with answerer:
            both = serving(hosts, "near", *others, service=replace(SERVICE, drained=drained))
            enforce(hosts, both)
            caller.sendall(b"x")
            answerer.settimeout(1)
            assert answerer.recv(1) == b"x", "idle or not, it lives on while its backend does"
            enforce(hosts, without(both, "near"))
            with pytest.raises(ConnectionResetError):
                for _ in range(3):
                    caller.sendall(b"x")
                    assert caller.recv(1) == b"", "it ends"
        hosts.converge("A")


@pytest.mark.parametrize(
    ("client", "others", "loose"),
    [("web", (), 1), ("web", ("near",), 1), ("A", (), 1), ("A", ("near",), 1), ("web", (), 0), ("A", ("near",), 0)],
    ids=str,
)
def test_a_connection_to_a_host_that_is_gone_is_reset_at_its_next_packet(
    hosts: Hosts, client: str, others: tuple[str, ...], loose: int
) -> None:
    """While its agent alone is away it lives on. `loose`: whether the kernel takes up what it has not seen the beginning of."""
    enforce(hosts, serving(hosts, "far"))
    hosts.run("A", f"sysctl -qw net.netfilter.nf_conntrack_tcp_loose={loose}")
    try:
        with listening(hosts, ("far", *others)) as listeners, hosts.socket(client) as caller:
            caller.connect((str(vip(hosts)), PORT))
            answerer, _ = listeners["far"].accept()
            with answerer:
                lost = replace(serving(hosts, "far", *others), alive=frozenset("A"))
                passed(hosts, "A", lost)
                caller.sendall(b"x")
                answerer.settimeout(1)
                assert answerer.recv(1) == b"x"
                hosts.run("B", "ip link set wire down")
                passed(hosts, "A", lost, "B")
                caller.settimeout(1)
                with pytest.raises(ConnectionResetError):
                    for _ in range(3):
                        caller.sendall(b"x")
                        caller.recv(1)
    finally:
        hosts.run("B", "ip link set wire up")
        wait_for_wire(hosts)
        hosts.run("A", "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1")
        enforce(hosts, hosts.snapshot)


@pytest.mark.parametrize("client", ["web", "far"])
def test_a_client_that_goes_on_sending_datagrams_gets_another_backend(hosts: Hosts, client: str) -> None:
    enforce(hosts, serving(hosts, "near"))
    with hosts.udp("near") as first, hosts.udp("web" if client == "far" else "far") as second, hosts.udp(client) as mouth:
        for ear in (first, second):
            ear.bind(("", 5353))
        mouth.bind(("", 7777))
        mouth.sendto(b"1", (str(vip(hosts)), 53))
        assert first.recv(9) == b"1"
        enforce(hosts, without(serving(hosts, "near", "web" if client == "far" else "far"), "near"))
        mouth.sendto(b"2", (str(vip(hosts)), 53))
        assert second.recv(9) == b"2"
    enforce(hosts, hosts.snapshot)


@pytest.mark.parametrize(("backend", "seen"), [("near", "B"), ("far", "A")])
def test_a_port_of_every_host_leads_to_the_service(hosts: Hosts, backend: str, seen: str) -> None:
    """A backend on that host sees the client, one on another host sees the host."""
    enforce(hosts, serving(hosts, backend))
    if backend == "near":
        assert hosts.connects("B", wire(hosts)["A"], 9090, backend, TARGET) == wire(hosts)[seen]
    for client in ("A", "near", "far"):
        for host in wire(hosts).values():
            assert hosts.connects(client, host, 9090, backend, TARGET) is not None, (client, host)


def befriended(snapshot: Snapshot, *friends: str) -> Snapshot:
    """Who stands for the service hears these alone."""
    found = read_policies(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  podSelector: {matchLabels: {app: shop}}\n"
        "  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}, {port: 80}]}]\n"
    ).policies
    endpoints = {**snapshot.endpoints, **{name: replace(snapshot.endpoints[name], labels={"app": "friend"}) for name in friends}}
    return replace(snapshot, endpoints=endpoints, policies={one.ident: one for one in found})


@pytest.mark.parametrize("backend", ["near", "far"])
def test_policies_are_judged_by_who_comes_and_where_it_gets(hosts: Hosts, backend: str) -> None:
    stranger = "far" if backend == "near" else "near"
    enforce(hosts, befriended(serving(hosts, backend), "web"))
    assert hosts.connects("web", vip(hosts), PORT, backend, TARGET) == own(hosts, "web")
    assert hosts.connects(stranger, vip(hosts), PORT, backend, TARGET, wait_s=0.3) is None
    enforce(hosts, hosts.snapshot)


@pytest.mark.parametrize("friends", [("far",), ()], ids=["a friend", "a stranger"])
def test_they_are_by_a_port_of_another_host_too(hosts: Hosts, friends: tuple[str, ...]) -> None:
    """By the one that the container publishes itself, and by the service's."""
    enforce(hosts, befriended(serving(hosts, "web"), *friends))
    for port, target in ((8080, 80), (9090, TARGET)):
        seen = hosts.connects("far", wire(hosts)["A"], port, "web", target, wait_s=1 if friends else 0.3)
        assert seen == (own(hosts, "far") if friends else None), port
    enforce(hosts, hosts.snapshot)


def test_what_idles_longer_than_the_kernel_remembers_lives_on_or_is_reset(hosts: Hosts) -> None:
    """With one backend its packets find the same again, with others than that they meet somebody who knows nothing of it."""
    hosts.run("A", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=1")
    try:
        for others, ends in (((), False), (("far",), True)):
            enforce(hosts, serving(hosts, "near"))
            with listening(hosts, ("near", *others)) as listeners, hosts.socket("web") as caller:
                caller.connect((str(vip(hosts)), PORT))
                answerer, _ = listeners["near"].accept()
                with answerer:
                    answerer.settimeout(1)
                    enforce(hosts, serving(hosts, "near", *others, service=replace(SERVICE, drained=("A/near",) if others else ())))
                    until_forgotten(hosts)
                    caller.sendall(b"x")
                    if ends:
                        caller.settimeout(5)  # the other one may have to look for its gateway first, which IPv6 does once a second
                        with pytest.raises(ConnectionResetError):
                            caller.recv(1)
                    else:
                        assert answerer.recv(1) == b"x"
    finally:
        hosts.run("A", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=432000")
        enforce(hosts, hosts.snapshot)


def until_forgotten(hosts: Hosts) -> None:
    for _ in range(100):
        if not hosts.run("A", f"conntrack -L -f ipv{hosts.version} -p tcp --state ESTABLISHED -d {vip(hosts)} 2>/dev/null").strip():
            return
        time.sleep(0.1)
    raise AssertionError("the kernel does not forget")


def test_a_port_is_only_of_hosts_that_publish_it_and_for_whom_they_say(hosts: Hosts) -> None:
    enforce(hosts, serving(hosts, "near", service=replace(SERVICE, hosts=("B",))))
    assert hosts.connects("B", wire(hosts)["A"], 9090, "near", TARGET) is None
    assert hosts.connects("A", wire(hosts)["B"], 9090, "near", TARGET) is not None
    hosts.clients = (IPv4Network("203.0.113.0/24"),)
    try:
        enforce(hosts, serving(hosts, "near"))
        assert hosts.connects("B", wire(hosts)["A"], 9090, "near", TARGET) is None
        assert hosts.connects("B", vip(hosts), PORT, "near", TARGET) is not None, "the virtual address is not published"
    finally:
        hosts.clients = ()
        enforce(hosts, hosts.snapshot)


def test_without_services_nothing_of_them_is_left(hosts: Hosts) -> None:
    enforce(hosts, serving(hosts, "near"))
    enforce(hosts, hosts.snapshot)
    for name in HOSTS:
        assert "vip" not in hosts.run(name, "nft list ruleset")
        routes = hosts.run(name, "ip route; ip -6 route")
        assert "10.27." not in routes and "fd55:" not in routes
