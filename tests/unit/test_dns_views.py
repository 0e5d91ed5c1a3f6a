# SPDX-License-Identifier: Apache-2.0
"""What containers see of each other's names: two networks with a `web` each, a client on one, on the other, on both, and the host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import dnslib
import pytest
from tests.support.dns import free_port

from plait.dns.answer import Fetch, Follow, Forward
from plait.dns.table import HIDDEN, Table, apply_changes
from plait.dns.view import OUTSIDE, View, asker_name, bound, networks_of
from plait.dns.zone import Zone, build_table
from plait.model.cluster import Container, Endpoint, Instance, Network, Node, Snapshot
from plait.serve.dns_parent import DnsService
from plait.serve.dns_responder import Counters, Responder

IP = IPv4Address
HOST, FOREIGN = "127.0.0.1", "192.0.2.77"


def endpoint(
    ident: str, name: str, network: str, address: str, node: str = "A", container: str = "", aliases: tuple[str, ...] = ()
) -> Endpoint:
    return Endpoint(ident, network, node, IP(address), "", "", "docker", container or name, name, aliases)


ENDPOINTS = [
    endpoint("1", "web", "red", "10.1.0.2", "B", "w1", ("shop",)),
    endpoint("2", "web", "blue", "10.2.0.2", "B", "w2"),
    endpoint("3", "in-red", "red", "10.1.0.3"),
    endpoint("4", "in-blue", "blue", "10.2.0.3"),
    endpoint("5", "both", "red", "10.1.0.4"),
    endpoint("6", "both", "blue", "10.2.0.4"),
    endpoint("7", "far", "red", "10.1.0.9", "B"),
]
NETWORKS = {
    name: Network(name, IPv4Network(subnet), IPv4Network(subnet)[-2], 28)
    for name, subnet in {"red": "10.1.0.0/24", "blue": "10.2.0.0/24", "default": "10.3.0.0/24"}.items()
}
SNAPSHOT = Snapshot(
    "A",
    1,
    {"A": Node("A", "1", IP("192.0.2.1")), "B": Node("B", "2", IP("192.0.2.2"))},
    frozenset("B"),
    NETWORKS,
    endpoints={e.id: e for e in ENDPOINTS},
    containers={("A", "c"): Container("c", "bridged", "A", "docker", addresses={"default": IP("10.3.0.5")})},
    instances={
        ("B", "db"): Instance("db", "db", "B", "10.1.0.2", 80, meta={"app": "x"}),
        ("B", "alias"): Instance("alias", "alias", "B", "web.plait", 80, meta={"app": "y"}),
    },
)


class Client:
    """Asks one process' answers, caches and all."""

    def __init__(self, snapshot: Snapshot = SNAPSHOT) -> None:
        self.zone, self.responder = Zone(snapshot), Responder(Counters())
        self.table = Table(*self.zone.table.parts())
        self.responder.set_table(self.table)

    def advance(self, snapshot: Snapshot, *touched: tuple[str, str]) -> None:
        changes = self.zone.advance(snapshot, touched)
        assert changes is not None, "who asks sees something else now"
        apply_changes(self.table, changes)
        self.responder.set_table(self.table)

    def ask(self, name: str, asker: str, qtype: str = "A") -> dnslib.DNSRecord:
        data = bytes(dnslib.DNSRecord.question(name, qtype).pack())
        response = self.responder.reply(data, lambda slot: ip_address(asker).packed)
        assert isinstance(response, bytes)
        return dnslib.DNSRecord.parse(response)

    def found(self, name: str, asker: str, qtype: str = "A") -> set[str]:
        return {str(row.rdata) for row in self.ask(name, asker, qtype).rr}


@pytest.fixture
def client() -> Client:
    return Client()


RED, BLUE = "10.1.0.2", "10.2.0.2"
SEEN = {
    "10.1.0.3": {RED},
    "10.2.0.3": {BLUE},
    "10.1.0.4": {RED, BLUE},
    "10.2.0.4": {RED, BLUE},
    "10.3.0.5": set(),
    HOST: {RED, BLUE},
    FOREIGN: {RED, BLUE},
    "::1": {RED, BLUE},
    "10.1.0.9": {RED, BLUE},
}
"""The last is a container of another host, whose own agent it should ask."""


@pytest.mark.parametrize("asker", SEEN)
@pytest.mark.parametrize("name", ["web", "web.plait", "WEB"])
def test_a_name_is_what_it_is_on_the_networks_of_who_asks(client: Client, name: str, asker: str) -> None:
    for other in (*SEEN, asker):  # whoever asked before
        assert client.found(name, other) == SEEN[other]


@pytest.mark.parametrize("asker", SEEN)
def test_a_network_in_the_name_opens_none(client: Client, asker: str) -> None:
    for name, address in (("web.red", RED), ("web.blue.plait", BLUE)):
        assert client.found(name, asker) == SEEN[asker] & {address}


@pytest.mark.parametrize("name", ["web", "web.plait", "shop", "web.red", "2.0.1.10.in-addr.arpa"])
def test_what_is_not_seen_does_not_exist(client: Client, name: str) -> None:
    answer = client.ask(name, "10.3.0.5")
    assert answer.header.rcode == dnslib.RCODE.NXDOMAIN and answer.auth[0].rtype == dnslib.QTYPE.SOA and answer.header.aa
    assert client.ask(name, HOST).header.rcode == dnslib.RCODE.NOERROR


def test_addresses_have_names_for_those_who_share_the_network(client: Client) -> None:
    assert client.found("2.0.1.10.in-addr.arpa", "10.1.0.3", "PTR") == {"web.plait."}
    assert client.found("2.0.1.10.in-addr.arpa", "10.2.0.3", "PTR") == set()
    assert client.found("2.0.1.10.in-addr.arpa", HOST, "PTR") == {"web.plait."}


def test_services_are_everybodys(client: Client) -> None:
    for asker in SEEN:
        assert client.found("db.service.consul", asker) == {RED}
        assert client.found("db", asker) == {RED}, "alone, where there is no container of that name"


def test_a_hidden_container_leaves_its_name_to_the_service() -> None:
    web = Instance("web", "web", "B", "10.9.0.1", 80)
    client = Client(replace(SNAPSHOT, instances={("B", "web"): web}))
    assert client.found("web", "10.1.0.3") == {RED}
    assert client.found("web", "10.3.0.5") == {"10.9.0.1"}


def test_what_a_service_leads_to_is_seen_as_by_its_own_name(client: Client) -> None:
    for name in ("alias.service.consul", "alias"):
        assert client.found(name, "10.1.0.3") == {"web.plait.", RED}
        assert client.found(name, "10.2.0.3") == {"web.plait.", BLUE}
        assert client.found(name, "10.3.0.5") == {"web.plait."}
    for name in ("alias.service.consul", "app--y.label.consul"):
        for asker, seen in SEEN.items():
            answer = client.ask(name, asker, "SRV")
            assert {str(row.rdata) for row in answer.ar} == seen and len(answer.rr) == 1
    assert client.found("app--y.label.consul", "10.2.0.3") == {"web.plait.", BLUE}


def test_a_container_that_joins_or_leaves_a_network_sees_it_at_once(client: Client) -> None:
    assert client.found("web", "10.1.0.3") == {RED}
    joined = replace(SNAPSHOT, endpoints=SNAPSHOT.endpoints | {"8": endpoint("8", "in-red", "blue", "10.2.0.5")})
    client.advance(joined, ("endpoints", "8"))
    assert client.found("web", "10.1.0.3") == client.found("web", "10.2.0.5") == {RED, BLUE}
    client.advance(SNAPSHOT, ("endpoints", "8"))
    assert client.found("web", "10.1.0.3") == {RED}


def test_an_endpoint_whose_container_is_not_known_yet_sees_its_own_network() -> None:
    bare = replace(endpoint("9", "", "red", "10.1.0.7"), container="")
    client = Client(replace(SNAPSHOT, endpoints=SNAPSHOT.endpoints | {"9": bare}))
    assert client.found("web", "10.1.0.7") == {RED}


def test_several_answers_are_dealt_to_each_view_apart(client: Client) -> None:
    for _ in range(300):
        assert client.found("web", "10.1.0.4") == {RED, BLUE} and client.found("web", "10.2.0.3") == {BLUE}
    orders = {tuple(str(row.rdata) for row in client.ask("web", "10.1.0.4").rr) for _ in range(100)}
    assert len(orders) == 2


def test_nobody_can_ask_who_asks() -> None:
    table = build_table(SNAPSHOT)
    name = asker_name(IP("10.1.0.3").packed)
    assert name in table.names and name.startswith(HIDDEN)
    response = Responder(Counters())
    response.set_table(table)
    for label in (name, name.lower(), name.removeprefix(HIDDEN)):
        wire = bytes((len(label),)) + label + b"\0"
        answer = response.reply(b"\0\1\1\0\0\1\0\0\0\0\0\0" + wire + b"\0\xff\0\1", lambda slot: IP(HOST).packed)
        assert isinstance(answer, bytes) and answer[6:8] == b"\0\0", "no answer"


def test_only_this_hosts_containers_are_known() -> None:
    table = build_table(SNAPSHOT)
    assert networks_of(table, IP("10.1.0.9").packed) is None
    assert networks_of(table, IP("10.1.0.4").packed) == networks_of(table, IP("10.2.0.4").packed)
    assert len((networks_of(table, IP("10.1.0.4").packed) or set()) - {OUTSIDE}) == 2


@pytest.mark.parametrize("first", ["inside", "outside"])
def test_who_is_on_internal_networks_alone_is_told_nothing_from_outside(first: str) -> None:
    """Whoever asks first: what is kept for one is not given to the other."""
    more = [
        endpoint("i1", "sealed", "inner", "10.4.0.3"),
        endpoint("i2", "half", "inner", "10.4.0.4"),
        endpoint("i3", "half", "red", "10.1.0.8"),
    ]
    inner = Network("inner", IPv4Network("10.4.0.0/24"), IP("10.4.0.254"), 28, internal=True)
    out = Instance("out", "out", "B", "db.example.org", 80)
    snapshot = replace(
        SNAPSHOT,
        networks={**NETWORKS, "inner": inner},
        endpoints=SNAPSHOT.endpoints | {e.id: e for e in more},
        instances={("B", "out"): out},
    )
    client = Client(snapshot)
    client.responder.set_recursion(True)

    def reply(name: str, asker: str, qtype: str = "A") -> object:
        return client.responder.reply(bytes(dnslib.DNSRecord.question(name, qtype).pack()), lambda slot: IP(asker).packed)

    askers = {"10.4.0.3": False, "10.4.0.4": True, "10.1.0.8": True, "10.1.0.3": True, HOST: True}
    for asker, leads_out in sorted(askers.items(), key=lambda row: row[1] == (first == "inside")) * 2:
        answer = reply("example.org", asker)
        assert isinstance(answer, Forward) == leads_out, asker
        if not leads_out:
            assert client.ask("example.org", asker).header.rcode == dnslib.RCODE.REFUSED
            assert client.found("out.service.consul", asker) == {"db.example.org."}, "the alias alone"
        assert isinstance(reply("out.service.consul", asker), Follow) == leads_out
        assert isinstance(reply("out.service.consul", asker, "SRV"), Fetch) == leads_out
        assert client.found("sealed", asker) == ({"10.4.0.3"} if asker in ("10.4.0.3", "10.4.0.4", "10.1.0.8", HOST) else set())


def test_a_view_of_bound_records() -> None:
    free, one, two = (1, b"aaaa"), bound((1, b"bbbb"), 7), bound((1, b"aaaa"), 8)
    everything, seven, nine = View(), View(frozenset({7})), View(frozenset({9}))
    assert everything.of((free,)) == (free,) and not everything.used
    assert everything.of((free, one, two)) == (free, (1, b"bbbb")) and everything.used
    assert seven.of((one, two)) == ((1, b"bbbb"),)
    assert nine.of((one, two)) is None and nine.of(()) == () and nine.of(None) is None
    assert nine.of((free, one)) == (free,)


# --- the process itself: who asks is read from its sockets

CLIENTS = {"127.0.0.2": {RED}, "127.0.0.3": {BLUE}, "127.0.0.4": {RED, BLUE}, "127.0.0.5": {RED, BLUE}}
"""Containers on the loopback: one on each network, one on both, and one that is none."""


@pytest.fixture
async def where() -> AsyncIterator[tuple[str, int]]:
    """Where a process answers that takes the clients for containers; it is held up until the first query waits."""
    loops = [endpoint("l1", "l", "red", "127.0.0.2"), endpoint("l2", "l", "blue", "127.0.0.3", container="m")]
    loops += [endpoint(f"l{network}", "l", network, "127.0.0.4", container="n") for network in ("red", "blue")]
    service, address = DnsService(on_crash=lambda text: None), ("127.0.0.1", free_port())
    await service.start()
    try:
        await service.set_table(build_table(replace(SNAPSHOT, endpoints=SNAPSHOT.endpoints | {e.id: e for e in loops})))
        assert await service.set_listen({address}) == ()
        os.kill((await service.stats()).pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.2, os.kill, service._child.pid, signal.SIGCONT)  # type: ignore[union-attr]
        yield address
    finally:
        await service.close()


def from_each_by_udp(where: tuple[str, int]) -> dict[str, set[str]]:
    """Many queries at once, in turn from each client, so that one system call reads those of all."""
    with contextlib.ExitStack() as stack:
        socks = {client: stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for client in CLIENTS}
        for client, sock in socks.items():
            sock.bind((client, 0))
            sock.settimeout(5)
        data = bytes(dnslib.DNSRecord.question("web").pack())
        for _ in range(8):
            for sock in socks.values():
                sock.sendto(data, where)
        found = {client: [addresses_in(sock.recv(512)) for _ in range(8)] for client, sock in socks.items()}
    assert all(len(set(answers)) == 1 for answers in found.values())
    return {client: set(answers[0]) for client, answers in found.items()}


def from_each_by_tcp(where: tuple[str, int]) -> dict[str, set[str]]:
    found = {}
    for client in CLIENTS:
        with socket.create_connection(where, 5, (client, 0)) as sock, sock.makefile("rb") as stream:
            data = bytes(dnslib.DNSRecord.question("web").pack())
            sock.sendall(len(data).to_bytes(2, "big") + data)
            found[client] = set(addresses_in(stream.read(int.from_bytes(stream.read(2), "big"))))
    return found


def addresses_in(response: bytes) -> frozenset[str]:
    return frozenset(str(row.rdata) for row in dnslib.DNSRecord.parse(response).rr)


@pytest.mark.parametrize("ask", [from_each_by_udp, from_each_by_tcp])
async def test_who_asks_is_who_sent_the_query(where: tuple[str, int], ask: Callable[[tuple[str, int]], dict[str, set[str]]]) -> None:
    assert await asyncio.to_thread(ask, where) == CLIENTS
