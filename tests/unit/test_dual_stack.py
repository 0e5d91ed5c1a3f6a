# SPDX-License-Identifier: Apache-2.0
"""IPv6 beside IPv4 in the agent: networks, addresses and names. What packets do is in tests/kernel/test_dual.py."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from types import SimpleNamespace

import dnslib
import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent import reports
from plait.agent.ports import assign_ports, listener
from plait.dns import message as m
from plait.dns.records import reverse_zones
from plait.dns.zone import Zone
from plait.ipam import check_network
from plait.kernel.dryrun import render
from plait.kernel.fake import CAPABILITIES, FakeKernel
from plait.lab.spec import parse_toml
from plait.lab.wires import hardware, host_batch
from plait.model.addr import IPAddress, at_port
from plait.model.cluster import Block, Container, Endpoint, Instance, Network, Node, PortMapping, Snapshot, published_text
from plait.model.discovery import LAN4, LAN6
from plait.model.errors import ConfigError, Conflict, NotSupported, PlaitError, PortInUse
from plait.model.objects import Op
from plait.model.ports import parse_ports
from plait.model.wireguard import WireguardPeer
from plait.plan import network_mtu
from plait.runtimes.api import AttachRequest, NetworkRequest, paired
from plait.serve.dns_responder import Counters, Responder
from plait.services.directory import agent_node
from plait.services.registrator import registrations
from plait.services.views import at_container
from plait.store.codec import decode, encode
from plait.store.join import split_address
from plait.store.listener import TlsListener, plain

A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network
WANTED = NetworkRequest("dual", N("10.31.0.0/24"), block_prefix=26, subnet6=N6("fd00:31::/64"))


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


async def attach(node: FakeNode, name: str, four: str = "", six: str = "", network: str = "dual") -> Endpoint:
    wanted = {"address": A(four) if four else None, "address6": A6(six) if six else None}
    return await node.ops.attach(AttachRequest(f"{node.name}.{name}", network, "sandbox", name, name, **wanted))  # type: ignore[arg-type]


def live(node: FakeNode) -> dict[str, str]:
    """Who holds which address of the network."""
    return {str(r.address): r.owner for r in node.addresses.reservations() if r.live and r.network == "dual"}


async def test_a_network_with_ipv6_gets_a_subnet_of_its_own_and_the_image_of_its_gateway(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        made = [await node.ops.ensure_network(NetworkRequest(f"m{i}", ipv6=True)) for i, node in enumerate((a, b))]
        subnets = [network.subnet6 for network in made]
        assert all(subnet is not None and subnet.subnet_of(N6("fd00::/8")) and subnet.prefixlen == 64 for subnet in subnets)
        assert subnets[0] != subnets[1] and [n.gateway6 for n in made] == [s[1] for s in subnets if s is not None]
        assert await a.ops.ensure_network(NetworkRequest("m0", ipv6=True)) == made[0], "asked again, it is the same one"


@pytest.mark.parametrize(
    ("again", "says"),
    [
        (NetworkRequest("default", ipv6=True), "exists already with IPv6 False, not True"),
        (replace(WANTED, subnet6=N6("fd00:32::/64")), "exists already with IPv6 subnet fd00:31::/64, not fd00:32::/64"),
        (replace(WANTED, gateway6=A6("fd00:31::9:9")), "exists already with IPv6 gateway fd00:31::1, not fd00:31::9:9"),
    ],
)
async def test_a_network_that_exists_otherwise_is_not_taken_for_it(
    store: Cuttable, tmp_path: Path, again: NetworkRequest, says: str
) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(WANTED)
        with pytest.raises(Conflict, match=says):
            await a.ops.ensure_network(again)


async def test_an_endpoint_has_the_image_of_its_address_and_the_next_pass_finds_it_plumbed(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(WANTED)
        await attach(a, "first")
        await a.converge()
        endpoint = await attach(a, "web")
        assert (endpoint.address, endpoint.address6) == (A("10.31.0.3"), A6("fd00:31::3"))
        assert await a.converge() == 0
        assert ("neigh", endpoint.dev, "fd00:31::3") in a.kernel.objects
        await a.ops.detach(endpoint.id)
        assert await a.converge() == 0
        assert not [key for key in a.kernel.objects if endpoint.dev in key]
        assert (await attach(a, "web")).address6 == endpoint.address6, "a name keeps both"


async def test_an_ipv6_address_that_is_asked_for_brings_its_ipv4_address(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(WANTED)
        endpoint = await attach(a, "web", six="fd00:31::7")
        assert (endpoint.address, endpoint.address6) == (A("10.31.0.7"), A6("fd00:31::7"))


async def test_of_two_that_do_not_go_together_both_are_held_and_both_come_back(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(WANTED)
        endpoint = await attach(a, "web", "10.31.0.5", "fd00:31::7")
        assert (endpoint.address, endpoint.address6) == (A("10.31.0.5"), A6("fd00:31::7"))
        assert live(a) == {"10.31.0.5": endpoint.id, "10.31.0.7": paired(endpoint.id)}
        with pytest.raises(Conflict, match=r"address 10\.31\.0\.7 .* is in use"):
            await attach(a, "other", "10.31.0.7")
        with pytest.raises(Conflict, match=r"IPv6 address fd00:31::7 cannot be had: address 10\.31\.0\.7"):
            await attach(a, "other", "10.31.0.8", "fd00:31::7")
        assert set(live(a)) == {"10.31.0.5", "10.31.0.7"}, "a refusal leaves nothing behind"
        await a.stop()
        await a.start()
        await a.ops.recover()
        assert set(live(a)) == {"10.31.0.5", "10.31.0.7"}, "a restart of the agent loses neither"
        assert await attach(a, "web") == endpoint
        await a.ops.detach(endpoint.id)
        assert live(a) == {}


async def test_an_engine_that_asks_ahead_hands_both_over(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(WANTED)
        four = (await a.ops.reserve("dual", "docker:mac")).ip
        assert await a.ops.reserve6("dual", "docker:mac") == A6("fd00:31::2")
        assert await a.ops.reserve6("dual", "docker:mac", A6("fd00:31::9")) == A6("fd00:31::9")
        endpoint = await attach(a, "web", str(four), "fd00:31::9")
        assert live(a) == {"10.31.0.2": endpoint.id, "10.31.0.9": paired(endpoint.id)}


REFUSED: list[tuple[str, str, type[PlaitError], str]] = [
    ("dual", "fd00:31::1:0", ConfigError, "is none that network 'dual' gives; ask for one from fd00:31:: to fd00:31::ff"),
    ("dual", "fd00:99::7", ConfigError, "is none that network 'dual' gives"),
    ("dual", "fd00:31::41", Conflict, r"lies in block 10\.31\.0\.64/26, which node B holds"),
    ("dual", "fd00:31::1", Conflict, "is kept for the network itself"),
    ("default", "fd00:31::7", NotSupported, "network 'default' has no IPv6"),
]


@pytest.mark.parametrize(("network", "six", "kind", "says"), REFUSED)
@pytest.mark.parametrize("four", ["", "own"])
async def test_what_cannot_be_had_is_refused_with_words_and_leaves_nothing(
    store: Cuttable, tmp_path: Path, network: str, six: str, kind: type[PlaitError], says: str, four: str
) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(WANTED)
        await attach(a, "first")
        await b.until(lambda: ("dual", N("10.31.0.0/26")) in b.view.snapshot.blocks)
        await attach(b, "second", "10.31.0.65")
        await a.until(lambda: ("dual", N("10.31.0.64/26")) in a.view.snapshot.blocks)
        before = [r for r in a.addresses.reservations() if r.live]
        own = {"dual": "10.31.0.20", "default": "10.28.0.20"}[network] if four else ""
        with pytest.raises(kind, match=says):
            await attach(a, "web", own, six, network)
        assert [r for r in a.addresses.reservations() if r.live] == before
        assert "A.web" not in a.view.snapshot.endpoints


async def test_a_kernel_without_ipv6_gives_ipv4_alone(store: Cuttable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeKernel, "capabilities", lambda self: CAPABILITIES - {"ipv6"})
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(WANTED)
        assert (await attach(a, "web")).address6 is None
        assert not [key for key in a.kernel.objects if "fd00" in " ".join(key)]
        with pytest.raises(NotSupported, match="this host carries no IPv6: its kernel has none"):
            await attach(a, "other", six="fd00:31::7")


# --- names

DUAL = Network("dual", N("10.31.0.0/16"), A("10.31.0.1"), 24, subnet6=N6("fd00:31::/64"), gateway6=A6("fd00:31::1"))
PLAIN = Network("plain", N("10.32.0.0/16"), A("10.32.0.1"), 24)
WEB = Endpoint("1", "dual", "A", A("10.31.0.2"), "", "", "docker", "w", "web", address6=A6("fd00:31::2"))
FAR = Endpoint("2", "dual", "B", A("10.31.1.2"), "", "", "docker", "f", "far", ("alias",), address6=A6("fd00:31::102"))
OLD = Endpoint("3", "plain", "A", A("10.32.0.2"), "", "", "docker", "o", "old")
BOX = Container(
    "w", "web", "A", "docker", labels={"plait.service": "shop", "plait.port": "80"}, addresses={"dual": WEB.address}, addresses6={}
)
SNAPSHOT = Snapshot(
    "A",
    1,
    {name: Node(name, name, A(f"192.0.2.{i}")) for i, name in enumerate("AB", 1)},
    frozenset("AB"),
    {"dual": DUAL, "plain": PLAIN},
    {("dual", N("10.31.0.0/24")): Block("dual", N("10.31.0.0/24"), "A")},
    {e.id: e for e in (WEB, FAR, OLD)},
    {("A", "w"): replace(BOX, addresses6={"dual": A6("fd00:31::2")})},
    {
        ("A", "s"): Instance("s", "shop", "A", "10.31.0.2", 80, container="web", tagged_addresses={LAN6: "fd00:31::2"}),
        ("A", "c"): Instance("c", "client", "A", "10.31.0.2", 80, tagged_addresses={LAN6: "fd00:31::2"}),
    },
)


def ask(name: str, qtype: str, asker: str = "127.0.0.1", snapshot: Snapshot = SNAPSHOT) -> tuple[int, set[str]]:
    responder = Responder(Counters())
    responder.set_table(Zone(snapshot).table)
    packed = A6(asker).packed if ":" in asker else A(asker).packed
    response = responder.reply(bytes(dnslib.DNSRecord.question(name, qtype).pack()), lambda slot: packed)
    assert isinstance(response, bytes)
    record = dnslib.DNSRecord.parse(response)
    return record.header.rcode, {str(row.rdata) for row in record.rr}


PTR6 = A6("fd00:31::102").reverse_pointer


@pytest.mark.parametrize(
    ("name", "qtype", "wanted"),
    [
        ("far", "AAAA", (m.NOERROR, {"fd00:31::102"})),
        ("far", "A", (m.NOERROR, {"10.31.1.2"})),
        ("alias.dual.plait", "AAAA", (m.NOERROR, {"fd00:31::102"})),
        ("old", "AAAA", (m.NOERROR, set())),
        ("nobody", "AAAA", (m.NXDOMAIN, set())),
        (PTR6, "PTR", (m.NOERROR, {"far.plait."})),
        (A6("fd00:31::103").reverse_pointer, "PTR", (m.NXDOMAIN, set())),
        ("shop.service.consul", "AAAA", (m.NOERROR, {"fd00:31::2"})),
        ("shop.service.consul", "A", (m.NOERROR, {"10.31.0.2"})),
        ("client.service.consul", "AAAA", (m.NOERROR, set())),
    ],
)
def test_names_of_both_families(name: str, qtype: str, wanted: tuple[int, set[str]]) -> None:
    assert ask(name, qtype) == wanted


def test_who_asks_by_ipv6_sees_what_it_sees_by_ipv4() -> None:
    for asker in ("10.31.0.2", "fd00:31::2"):
        assert ask("far", "AAAA", asker)[1] == {"fd00:31::102"}
        assert ask("old", "A", asker) == (m.NXDOMAIN, set()), "it is on another network"


def test_a_host_that_speaks_to_a_container_has_a_name() -> None:
    tunnel = SNAPSHOT.nodes["B"].tunnel6.reverse_pointer
    assert ask(tunnel, "PTR")[1] == {"B.node.dc1.consul."} or ask(tunnel, "PTR")[1] == {"b.node.dc1.consul."}
    without = replace(SNAPSHOT, networks={"plain": PLAIN}, endpoints={"3": OLD}, containers={}, instances={})
    assert b"ip6.arpa" not in b" ".join(Zone(without).table.names), "nothing of IPv6 where there is none"


@pytest.mark.parametrize(
    ("subnet", "count", "first"),
    [
        ("fd00:31::/64", 1, b"0.0.0.0.0.0.0.0.1.3.0.0.0.0.d.f.ip6.arpa"),
        ("fd00::/15", 2, b"0.0.d.f.ip6.arpa"),
        ("fd00::/8", 1, b"d.f.ip6.arpa"),
    ],
)
def test_reverse_zones_cover_the_subnet_and_no_more(subnet: str, count: int, first: bytes) -> None:
    zones = list(reverse_zones(N6(subnet)))
    assert len(zones) == count and zones[0] == first


# --- what is listed and registered


def test_lists_show_both_families() -> None:
    assert [row["cidr6"] for row in reports.block_rows(SNAPSHOT)] == ["fd00:31::/120"]
    rows = {row["name"]: row for row in reports.network_rows(SNAPSHOT)}
    assert (rows["dual"]["subnet6"], rows["dual"]["gateway6"], rows["plain"]["subnet6"]) == ("fd00:31::/64", "fd00:31::1", "")
    assert reports.container_rows(SNAPSHOT)[0]["addresses6"] == {"dual": "fd00:31::2"}
    assert [row["address6"] for row in reports.network_view(SNAPSHOT, DUAL)["attached"]] == ["fd00:31::2", "fd00:31::102"]


def test_a_container_that_names_a_service_tags_both_of_its_addresses() -> None:
    for box, wanted in ((BOX, {}), (SNAPSHOT.containers["A", "w"], {LAN4: "10.31.0.2", LAN6: "fd00:31::2"})):
        (made,), problems = registrations(box, "192.0.2.1", "named", "container")
        assert (made.instance.address, dict(made.instance.tagged_addresses), problems) == ("10.31.0.2", wanted, [])


def test_a_service_that_follows_its_container_takes_both_addresses_with_it() -> None:
    before = Instance("s", "shop", "A", "", 80, container="web", tagged_addresses={"wan": "203.0.113.1"})
    on_dual = at_container(SNAPSHOT, before, "10.31.0.2")
    assert on_dual.tagged_addresses == {"wan": "203.0.113.1", LAN4: "10.31.0.2", LAN6: "fd00:31::2"}
    assert at_container(SNAPSHOT, on_dual, "10.32.0.2").tagged_addresses == {"wan": "203.0.113.1"}, "and leaves them behind"


# --- an underlay of IPv6


def test_a_node_of_either_family_survives_the_store() -> None:
    for text in ("198.18.0.1", "2001:2::1"):
        node = Node("A", "1", ip_address(text))
        assert decode(Node, encode(node), "nodes/A") == node
    with pytest.raises(ConfigError, match="is no Node"):
        decode(Node, b'{"name":"A","id":"1","address":"nowhere"}', "nodes/A")


def test_what_is_wrapped_in_ipv6_has_twenty_bytes_less() -> None:
    tunnelled, local = PLAIN, replace(PLAIN, backend="none")
    for address, wanted in ((A("192.0.2.1"), [1450, 1500]), (A6("2001:2::1"), [1430, 1500])):
        assert [network_mtu(Node("A", "1", address), network) for network in (tunnelled, local)] == wanted


def test_a_node_of_the_other_family_is_named() -> None:
    mixed = replace(SNAPSHOT, nodes={"A": Node("A", "A", A6("2001:2::1")), "B": SNAPSHOT.nodes["B"]})
    underlay = SimpleNamespace(path_mtus=SimpleNamespace(known={}, answered=set()))
    (row,) = reports.path_states(mixed, underlay, SimpleNamespace(known={}))  # type: ignore[arg-type]
    assert row["error"] == "has an address of IPv4, this node one of IPv6: give both the same (node.address)"


def test_a_network_never_holds_a_nodes_address_of_either_family() -> None:
    with pytest.raises(ConfigError, match="fd00:31::/64' holds fd00:31::99, the address of node A"):
        check_network(DUAL, [], [Node("A", "1", A6("fd00:31::99"))])


def test_places_are_written_with_brackets_where_they_must_be() -> None:
    assert (at_port(A("192.0.2.1"), 80), at_port("2001:2::1", 80)) == ("192.0.2.1:80", "[2001:2::1]:80")
    tagged = agent_node(Node("a", "1", A6("2001:2::1"))).tagged_addresses
    assert tagged == dict.fromkeys(("lan", "lan_ipv6", "wan", "wan_ipv6"), "2001:2::1")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2001:2::1", ("2001:2::1", 7471)),
        ("[2001:2::1]", ("2001:2::1", 7471)),
        ("[2001:2::1]:99", ("2001:2::1", 99)),
        ("host:99", ("host", 99)),
        ("::1", ("::1", 7471)),
    ],
)
def test_an_address_to_join_at_may_be_of_ipv6(text: str, wanted: tuple[str, int]) -> None:
    assert split_address(text, 7471) == wanted


@pytest.mark.parametrize("text", ["[2001:2::1", "[2001:2::1]x", "[2001:2::1]:", "[]:5", "2001:2::1:99999:x", "a:b:c"])
def test_a_malformed_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no HOST or HOST:PORT"):
        split_address(text, 7471)


async def test_a_listener_on_every_address_hears_both_families_and_knows_ipv4_by_its_name() -> None:
    listener = TlsListener("", 0, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), lambda reader, writer: asyncio.sleep(0))
    listener.open()
    try:
        for where in ("127.0.0.1", "::1"):
            socket.create_connection((where, listener.port), 2).close()
    finally:
        listener.close()
    assert (plain("::ffff:192.0.2.1"), plain("2001:2::1")) == ("192.0.2.1", "2001:2::1")


LINKS = """
[[switch]]
name = "six"
underlay = "ipv6"
[[switch]]
name = "two"
underlay = "dual"
[[host]]
name = "A"
[[host]]
name = "B"
switch = "two"
"""


def test_a_lab_file_gives_links_their_family() -> None:
    spec = parse_toml(LINKS)
    a, b = spec.hosts
    assert (str(a.address), a.second, str(b.address), str(b.second)) == ("2001:2::1", None, "198.18.1.1", "2001:2:0:1::1")
    assert "address add 2001:2::1/64 dev eth0 nodad" in host_batch(spec, a) and hardware(a.address) == "02:4c:00:00:00:01"
    both = {"address add 198.18.1.1/24 brd + dev eth0", "address add 2001:2:0:1::1/64 dev eth0 nodad"}
    assert both <= set(host_batch(spec, b).splitlines())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LINKS.replace('"dual"', '"both"'), "one of ipv4, ipv6, dual"),
        (f'{LINKS}[[router]]\nname = "R"\nswitches = ["six", "two"]\n', "a router forwards either IPv4 or IPv6"),
    ],
)
def test_a_lab_that_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_toml(text)


# --- published ports


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[::]:8080:80", PortMapping("tcp", 8080, 80, A6("::"))),
        ("[fd99::1]::80/udp", PortMapping("udp", 0, 80, A6("fd99::1"))),
        ("127.0.0.1:8080:80", PortMapping("tcp", 8080, 80, A("127.0.0.1"))),
    ],
)
def test_an_ipv6_address_of_the_host_is_written_in_brackets(text: str, wanted: PortMapping) -> None:
    assert parse_ports([text]) == (wanted,)
    assert published_text(replace(wanted, host_port=9)).startswith(text.partition("]")[0] if "[" in text else "127.0.0.1:9->80")


@pytest.mark.parametrize("text", ["[fd99::1:8080:80", "fd99::1:8080:80", "[nowhere]:80:80", "[::]"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not"):
        parse_ports([text])


WILD4, WILD6, LOOP4, ONE6 = A("0.0.0.0"), A6("::"), A("127.0.0.1"), A6("fd99::1")


@pytest.mark.parametrize(
    ("held", "asked", "free"),
    [
        (WILD4, WILD6, False),
        (WILD6, WILD4, False),
        (WILD6, ONE6, False),
        (ONE6, WILD6, False),
        (ONE6, ONE6, False),
        (ONE6, WILD4, False),
        (LOOP4, WILD6, True),
        (WILD6, LOOP4, True),
        (ONE6, LOOP4, True),
        (ONE6, A6("fd99::2"), True),
    ],
)
def test_who_has_a_port_on_which_addresses(held: IPAddress, asked: IPAddress, free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.agent.ports.listener", lambda *where: None)
    before = replace(WEB, ports=(PortMapping("tcp", 8080, 80, A("192.0.2.9")), PortMapping("tcp", 8080, 80, held)))
    other = replace(WEB, id="9", name="other", address6=A6("fd00:31::9"))
    snapshot = replace(SNAPSHOT, endpoints={"1": before})
    port = PortMapping("tcp", 8080, 80, asked)
    if free:
        assert assign_ports([port], other, snapshot, []) == (port,)
    else:
        with pytest.raises(PortInUse, match="is published for 'web' already"):
            assign_ports([port], other, snapshot, [])


def test_who_has_no_ipv6_is_not_published_on_it() -> None:
    with pytest.raises(NotSupported, match="cannot publish a port of 'old' on ::: it has no IPv6 address"):
        assign_ports([PortMapping("tcp", 8080, 80, WILD6)], OLD, SNAPSHOT, [])


def test_a_program_that_listens_by_ipv4_alone_leaves_the_port_free_on_ipv6() -> None:
    for where in ("127.0.0.1", ""):
        with socket.create_server((where, 0)) as server:
            port = server.getsockname()[1]
            assert listener("tcp", port, WILD6) is None and listener("tcp", port, LOOP4) is not None
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert listener("tcp", server.getsockname()[1], WILD6) is not None


def test_the_far_end_of_an_encrypted_tunnel_is_shown_with_brackets() -> None:
    peer = WireguardPeer("pl-wg", "KEY=", (A6("2001:2::2"), 7472))
    assert render(Op("put", peer)) == ["wg set pl-wg peer KEY= endpoint [2001:2::2]:7472 persistent-keepalive off"]


def test_an_older_record_of_a_port_is_on_every_address() -> None:
    assert decode(PortMapping, b'{"proto":"tcp","host_port":1,"container_port":2}', "k").host_ip == WILD4
    six = PortMapping("tcp", 1, 2, ONE6)
    assert decode(PortMapping, encode(six), "k") == six
