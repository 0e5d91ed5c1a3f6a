# SPDX-License-Identifier: Apache-2.0
"""Answers that need somebody else: resolvers in their order, aliases that lead outside, prepared queries. With the real child process."""

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, ip_address

import dnslib
import pytest
from tests.support.dns import HOST, Pair, ask, exchange, free_port, resolver

from plait.agent.dnsqueries import QueryNames, node_at
from plait.agent.dnswatch import DnsWatch
from plait.agent.health import Health
from plait.dns import message as m
from plait.dns.answer import Ask, Follow, Found, Origin, answer
from plait.dns.options import Options
from plait.dns.view import View
from plait.dns.zone import Zone, build_table
from plait.model.cluster import Container, Endpoint, Instance, Node, Snapshot
from plait.model.query import PreparedQuery, Selection
from plait.serve.dns_core import Core
from plait.serve.dns_link import Upstreams
from plait.serve.dns_parent import DnsService

NODES = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
INSTANCES = {
    ("a", "out"): Instance("out", "out", "a", "db.example.org", 5432),
    ("a", "in"): Instance("in", "in", "a", "web.service.consul", 1),
    ("a", "loop"): Instance("loop", "loop", "a", "loop.service.consul", 1),
    ("a", "web"): Instance("web", "web", "a", "10.28.0.2", 80),
}
SNAPSHOT = Snapshot(me="a", revision=1, nodes=NODES, instances=INSTANCES)
TABLE = build_table(SNAPSHOT)
NOWHERE: Origin = (b"", 0)
FOUND: dict[bytes, Found] = {
    b"known": (b"web", -1, False, ((m.A, bytes((10, 28, 0, 2))), (m.SRV, b"\0\1\0\1\0\x50" + m.wire_name(b"0a1c0002.addr.dc1.consul")))),
    b"dotted.name": (b"web", 9, True, tuple((m.A, bytes((10, 28, 1, n))) for n in range(20))),
    b"outside": (b"web", 9, False, ((m.CNAME, m.wire_name(b"db.example.org")),)),
    b"empty": (b"web", 9, False, ()),
}


@pytest.fixture
async def service() -> AsyncIterator[DnsService]:
    service = DnsService(on_crash=lambda text: None, on_query=lambda name, origin: FOUND.get(name))
    await service.start()
    yield service
    await service.close()


@pytest.fixture
async def where(service: DnsService) -> Pair:
    address = (HOST, free_port())
    await service.set_table(TABLE)
    assert await service.set_listen({address}) == ()
    return address


def shown(record: dnslib.DNSRecord) -> list[tuple[str, str, int]]:
    return [(str(rr.rname).rstrip("."), str(rr.rdata).rstrip("."), rr.ttl) for rr in record.rr]


async def test_an_alias_is_followed_to_the_resolvers_and_their_ttls_are_kept(service: DnsService, where: Pair) -> None:
    await service.set_options(Options(service_ttl={b"out": 5}))
    alias = ("Out.service.consul", "db.example.org", 5)
    assert shown(await ask("Out.service.consul", where)) == [alias], "without resolvers the alias alone"
    async with resolver({"db.example.org": "A 198.51.100.1\nA 198.51.100.2"}) as (address, asked):
        await service.set_upstreams(Upstreams([address]))
        record = await ask("Out.service.consul", where)
        assert (record.header.rcode, record.header.aa, record.header.ra) == (0, 1, 1)
        assert shown(record) == [alias, ("db.example.org", "198.51.100.1", 60), ("db.example.org", "198.51.100.2", 60)]
        assert shown(await ask("out.service.consul", where, "CNAME")) == [("out.service.consul", "db.example.org", 5)]
        assert asked == ["db.example.org"], "who asks for the alias gets that"
    assert shown(await ask("Out.service.consul", where)) == [alias], "what resolvers that are gone would add is left out"


async def test_an_alias_is_followed_three_times_at_most(service: DnsService, where: Pair) -> None:
    zone = {"db.example.org": "CNAME one.example.org", "one.example.org": "CNAME two.example.org", "two.example.org": "CNAME x.example.org"}
    async with resolver({**zone, "x.example.org": "A 198.51.100.1"}) as (address, asked):
        await service.set_upstreams(Upstreams([address]))
        assert len(shown(await ask("out.service.consul", where))) == 4
        assert asked == ["db.example.org", "one.example.org", "two.example.org"]


async def test_an_alias_of_a_host_that_does_not_exist_says_so(service: DnsService, where: Pair) -> None:
    async with resolver({}) as (address, _):
        await service.set_upstreams(Upstreams([address]))
        record = await ask("out.service.consul", where)
        assert record.header.rcode == m.NXDOMAIN and [data for _, data, _ in shown(record)] == ["db.example.org"]


async def test_what_a_resolver_truncates_is_fetched_over_tcp(service: DnsService, where: Pair) -> None:
    async with resolver({"db.example.org": "TC\nA 198.51.100.1"}) as (address, asked):
        await service.set_upstreams(Upstreams([address]))
        assert shown(await ask("out.service.consul", where))[1:] == [("db.example.org", "198.51.100.1", 60)]
        assert len(asked) == 2


async def test_an_alias_inside_needs_nobody(service: DnsService, where: Pair) -> None:
    assert [data for _, data, _ in shown(await ask("in.service.consul", where))] == ["web.service.consul", "10.28.0.2"]
    loop = await ask("loop.service.consul", where)
    assert {data for _, data, _ in shown(loop)} == {"loop.service.consul"} and len(loop.rr) == 4


@pytest.mark.parametrize(
    "junk", [b"", b"x" * 12, b"\0\0\x81\x80\0\1\0\1\0\0\0\0", b"\0\0\x81\x80\0\0\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\0\0\4abcd"]
)
def test_junk_of_a_resolver_adds_nothing(junk: bytes) -> None:
    query = bytes(dnslib.DNSRecord.question("out.service.consul").pack())
    follow = answer(TABLE, query, 512, lambda n: 0, recursion=True)
    assert isinstance(follow, Follow)
    response = follow.finish(junk)
    assert isinstance(response, bytes) and len(dnslib.DNSRecord.parse(response).rr) == 1


# --- SRV records that name hosts outside


def beside(record: dnslib.DNSRecord) -> list[tuple[str, str, int]]:
    return [(str(rr.rname).rstrip("."), str(rr.rdata).rstrip("."), rr.ttl) for rr in record.ar if rr.rtype != m.OPT]


async def asked_srv(where: Pair, name: str = "out.service.consul", edns: int = 0, *, stream: bool = False, rd: int = 1) -> dnslib.DNSRecord:
    query = dnslib.DNSRecord.question(name, "SRV")
    query.header.rd = rd
    if edns:
        query.add_ar(dnslib.EDNS0(udp_len=edns))
    data = bytes(query.pack())
    if not stream:
        return dnslib.DNSRecord.parse(await asyncio.to_thread(exchange, data, where))
    reader, writer = await asyncio.open_connection(*where)
    writer.write(len(data).to_bytes(2, "big") + data)
    response = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    writer.close()
    return dnslib.DNSRecord.parse(response)


async def test_the_addresses_of_a_host_outside_stand_beside_its_srv_record(service: DnsService, where: Pair) -> None:
    alone = await asked_srv(where)
    assert shown(alone) == [("out.service.consul", "1 1 5432 db.example.org", 0)] and beside(alone) == [], "without resolvers"
    zone = {"db.example.org": "CNAME host.example.net", "host.example.net": "A 198.51.100.9"}
    zone["db.example.org"] += "\nA 198.51.100.7\nAAAA 2001:db8::7"
    async with resolver(zone) as (address, asked):
        await service.set_upstreams(Upstreams([address]))
        wanted = [("db.example.org", data, 60) for data in ("host.example.net", "198.51.100.7", "2001:db8::7")]
        for options in ({}, {"edns": 1232}, {"stream": True}):
            record = await asked_srv(where, **options)
            assert shown(record) == shown(alone) and beside(record) == wanted and record.header.tc == 0
        assert asked == ["db.example.org"] * 6, "A and AAAA"
        assert beside(await asked_srv(where, rd=0)) == [] and len(asked) == 6, "who wants no recursion gets none"
        inside = await asked_srv(where, "in.service.consul")
        assert beside(inside) == [("web.service.consul", "10.28.0.2", 0)] and len(asked) == 6


async def test_a_resolver_that_fails_takes_nothing_from_an_srv_record(service: DnsService, where: Pair) -> None:
    await service.set_upstreams(Upstreams([(HOST, 1)], timeout=0.2))
    for options in ({}, {"stream": True}):
        record = await asked_srv(where, **options)
        assert record.header.rcode == m.NOERROR and len(shown(record)) == 1 and beside(record) == []
    async with resolver({}) as (address, _):
        await service.set_upstreams(Upstreams([address]))
        record = await asked_srv(where)
        assert record.header.rcode == m.NOERROR and len(shown(record)) == 1 and beside(record) == [], "a host that does not exist"


async def test_what_stands_beside_is_bounded_and_never_truncates(service: DnsService, where: Pair) -> None:
    hosts = {("a", str(n)): Instance(str(n), "many", "a", f"h{n}.example.org", 80) for n in range(10)}
    await service.set_table(build_table(Snapshot(me="a", nodes=NODES, instances=INSTANCES | hosts)))
    zone = {f"h{n}.example.org": "A 198.51.100.1" for n in range(10)}
    zone["db.example.org"] = "\n".join(f"A 198.51.100.{n}" for n in range(1, 41))
    async with resolver(zone) as (address, asked):
        await service.set_upstreams(Upstreams([address]))
        assert len(beside(await asked_srv(where))) == 5 and len(beside(await asked_srv(where, edns=1232))) == 40
        tight = await asked_srv(where, edns=512)
        assert len(shown(tight)) == 1 and beside(tight) == [] and tight.header.tc == 0, "no room beside the answer"
        asked.clear()
        many = await asked_srv(where, "many.service.consul", 1232)
        assert len(shown(many)) == 10 and len(beside(many)) == 4 and len(asked) == 8, "of the first four hosts"


async def test_a_resolver_with_an_ipv6_address(service: DnsService, where: Pair) -> None:
    async with resolver({"x.example.org": "A 198.51.100.1"}, "::1") as (address, _):
        await service.set_upstreams(Upstreams([address]))
        assert shown(await ask("x.example.org", where)) == [("x.example.org", "198.51.100.1", 60)]


async def test_resolvers_take_turns_at_random_or_none_while_the_first_answers(service: DnsService, where: Pair) -> None:
    zone = {"x.example.org": "A 198.51.100.1"}
    async with resolver(zone) as (one, asked_one), resolver(zone) as (two, asked_two):
        await service.set_upstreams(Upstreams([one, two]))
        for _ in range(20):
            await ask("x.example.org", where)
        assert (len(asked_one), len(asked_two)) == (20, 0)
        await service.set_upstreams(Upstreams([one, two], random=True))
        for _ in range(40):
            await ask("x.example.org", where)
        assert len(asked_one) > 22 and len(asked_two) > 2 and len(asked_one) + len(asked_two) == 60


async def test_the_timeout_and_the_bound_are_those_that_were_set(service: DnsService, where: Pair) -> None:
    silent = (HOST, free_port())
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, silent)
    health, watch = Health(time.time), None
    watch = DnsWatch(service, health)
    await watch.look()
    async with resolver({"x.example.org": "A 198.51.100.1"}) as (good, _):
        await service.set_upstreams(Upstreams([silent, good], timeout=0.1, outstanding=3))
        assert shown(await ask("x.example.org", where)), "the second answers once the first has had its time"
        await service.set_upstreams(Upstreams([silent], timeout=0.3, outstanding=3))
        assert health.active() == []
        answers = await asyncio.gather(*(ask("x.example.org", where) for _ in range(5)))
        assert {a.header.rcode for a in answers} == {m.SERVFAIL}
    transport.close()
    await watch.look()
    assert [active.condition.code for active in health.active()] == ["dns-forwards-refused"] and "2 queries" in health.active()[0].text
    figures = {reading.name: reading.value for reading in watch.figures}
    assert figures["plait.dns.forward_rejected"] == 2 and figures["plait.dns.udp_queries"] >= 6
    for _ in range(10):
        await watch.look()
    assert health.active() == [], "it ends once nothing was turned away for a while"


async def test_a_name_that_becomes_ours_is_ours_at_once_whatever_the_resolvers_say(service: DnsService, where: Pair) -> None:
    async with resolver({"api.corp": "A 198.51.100.1"}) as (address, _):
        await service.set_upstreams(Upstreams([address]))
        assert shown(await ask("api.corp", where)) == [("api.corp", "198.51.100.1", 60)]
        table = build_table(SNAPSHOT)
        table.names[b"api.corp"] = ((m.A, bytes((10, 28, 0, 7))),)
        await service.set_table(table)
        assert shown(await ask("api.corp", where)) == [("api.corp", "10.28.0.7", 0)]


# --- prepared queries


@pytest.mark.parametrize("name", ["known.query.consul", "KNOWN.query.dc1.consul", "_known._tcp.query.consul"])
async def test_a_prepared_query_is_asked_of_the_agent(service: DnsService, where: Pair, name: str) -> None:
    await service.set_options(Options(service_ttl={b"web": 4}))
    assert shown(await ask(name, where)) == [(name, "10.28.0.2", 4)], "the TTL is its service's unless it has its own"
    record = await ask(name, where, "SRV")
    assert str(record.rr[0].rdata) == "1 1 80 0a1c0002.addr.dc1.consul." and str(record.ar[0].rdata) == "10.28.0.2"
    absent = await ask(name, where, "AAAA")
    assert (absent.header.rcode, len(absent.rr), len(absent.auth)) == (m.NOERROR, 0, 1)


async def test_prepared_queries_with_dots_near_outside_and_absent(service: DnsService, where: Pair) -> None:
    for _ in range(5):
        record = await ask("dotted.name.query.consul", where)
        assert shown(record) == [("dotted.name.query.consul", f"10.28.1.{n}", 9) for n in range(20)], "in the order of nearness"
    for name in ("nix.query.consul", "empty.query.consul"):
        absent = await ask(name, where)
        assert absent.header.rcode == m.NXDOMAIN and str(absent.auth[0].rname) == "consul."
    assert (await ask("query.consul", where)).header.rcode == m.NOERROR
    async with resolver({"db.example.org": "A 198.51.100.1"}) as (address, _):
        await service.set_upstreams(Upstreams([address]))
        assert [data for _, data, _ in shown(await ask("outside.query.consul", where))] == ["db.example.org", "198.51.100.1"]
    counters = (await service.stats()).counters
    assert counters["query_asked"] == 8 and counters["query_failed"] == counters["query_rejected"] == 0


def entry(node: str, ident: str, *tags: str) -> dict[str, object]:
    service = {"ID": ident, "Service": "web", "Port": 80, "Tags": list(tags), "Meta": {}}
    return {"Node": {"Node": node, "Meta": {}}, "Service": service, "Checks": []}


def test_what_a_query_gives() -> None:
    instances = {("a", "1"): Instance("1", "web", "a", "10.28.0.1", 80, ("x",)), ("b", "2"): Instance("2", "web", "b", "", 81)}
    nodes = {**NODES, "b": Node("b", "2", IPv4Address("192.0.2.2"))}
    snapshot = Snapshot(me="a", nodes=nodes, alive=frozenset("ab"), instances=instances)
    targets = ({"Datacenter": "dc2"}, {"Datacenter": "dc1", "Service": "web"})
    queries = [
        PreparedQuery("1", Selection("web", near="b"), name="near", ttl="1m"),
        PreparedQuery("5", Selection("web", near="_ip"), name="client"),
        PreparedQuery("2", Selection("web", tags=("x",)), name="tagged"),
        PreparedQuery("4", Selection("gone", targets=targets, near="b"), name="spare"),
        PreparedQuery("3", Selection("${name.suffix}"), name="t-", template="name_prefix_match"),
    ]
    entries = {"web": [entry("a", "1", "x"), entry("b", "2")]}
    names = QueryNames(
        lambda: queries,
        lambda service: entries.get(service, []),
        lambda *key: instances.get(key),
        lambda name: (lambda node: float(node != name)) if name else None,
        lambda origin: node_at(snapshot, origin),
        "dc1",
    )  # type: ignore[arg-type]
    assert names(b"near", NOWHERE) is None, "nothing is known before there is a zone"
    names.zone = Zone(snapshot)
    found = names(b"near", NOWHERE)
    assert found is not None and found[:3] == (b"web", 60, True)
    assert [data for rtype, data in found[3] if rtype == m.A] == [bytes((192, 0, 2, 2)), bytes((10, 28, 0, 1))]
    assert [m.dotted(data[6:]) for rtype, data in found[3] if rtype == m.SRV] == [b"b.node.dc1.consul", b"0a1c0001.addr.dc1.consul"]
    for address, first in (("192.0.2.2", "192.0.2.2"), ("192.0.2.1", "10.28.0.1")):
        client = names(b"client", (ip_address(address).packed, 32))
        assert client is not None and client[2], "nearest first"
        assert next(data for rtype, data in client[3] if rtype == m.A) == ip_address(first).packed
    nowhere = names(b"client", NOWHERE)
    assert nowhere is not None and not nowhere[2], "in random order"
    tagged = names(b"TAGGED", NOWHERE)
    assert tagged is not None and tagged[1:3] == (-1, False) and (m.A, bytes((10, 28, 0, 1))) in tagged[3] and len(tagged[3]) == 2
    spare = names(b"spare", NOWHERE)
    assert spare is not None and spare[3] == found[3], "no instance of it: those of the next target"
    assert names(b"t-web", NOWHERE) is not None and names(b"nix", NOWHERE) is None


def test_the_node_where_something_is() -> None:
    endpoint = Endpoint("e", "mesh", "b", IPv4Address("10.29.0.9"), "", "", "docker")
    container = Container("c", "c", "b", "docker", addresses={"default": IPv4Address("10.28.0.9")})
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"), tunnel=IPv4Address("10.28.0.1")), "b": Node("b", "2", IPv4Address("192.0.2.2"))}
    snapshot = Snapshot(me="a", nodes=nodes, endpoints={"e": endpoint}, containers={("b", "c"): container})
    places = {"192.0.2.2": "b", "10.28.0.1": "a", "10.29.0.9": "b", "10.28.0.9": "b", "127.0.0.1": "a", "::1": "a", "198.51.100.1": ""}
    for address, node in places.items():
        packed = ip_address(address).packed
        assert node_at(snapshot, (packed, 8 * len(packed))) == node, address
    assert node_at(snapshot, NOWHERE) == ""
    assert node_at(snapshot, (ip_address("192.0.2.0").packed, 24)) == "a", "of several the first"
    assert node_at(snapshot, (ip_address("10.29.0.77").packed, 24)) == "b", "its bits beyond the prefix do not count"
    assert node_at(snapshot, (ip_address("2001:db8::").packed, 48)) == ""


def subnet_option(family: int, prefix: int, packed: bytes) -> dnslib.EDNSOption:
    return dnslib.EDNSOption(8, family.to_bytes(2, "big") + bytes((prefix, 0)) + packed)


@pytest.mark.parametrize(
    ("option", "origin", "scope"),
    [
        (None, (bytes((10, 28, 0, 9)), 32), None),
        (subnet_option(1, 24, bytes((192, 0, 2))), (bytes((192, 0, 2, 0)), 24), 24),
        (subnet_option(2, 56, bytes(7)), (bytes(16), 56), 56),
        (subnet_option(1, 0, b""), (bytes((10, 28, 0, 9)), 32), 0),
        (subnet_option(1, 33, bytes(4)), (bytes((10, 28, 0, 9)), 32), 0),
        (subnet_option(3, 24, bytes(3)), (bytes((10, 28, 0, 9)), 32), 0),
    ],
)
def test_a_prepared_query_is_asked_from_where_the_client_is(option: dnslib.EDNSOption | None, origin: Origin, scope: int | None) -> None:
    question = dnslib.DNSRecord.question("known.query.consul")
    question.add_ar(dnslib.EDNS0(udp_len=1232, opts=[option] if option else []))
    pending = answer(TABLE, bytes(question.pack()), 1232, lambda n: 0, view=View(None, bytes((10, 28, 0, 9))))
    assert isinstance(pending, Ask) and pending.origin == origin
    response = pending.finish(FOUND[b"known"])
    assert isinstance(response, bytes)
    (opt,) = [row for row in dnslib.DNSRecord.parse(response).ar if row.rtype == dnslib.QTYPE.OPT]
    assert [bytes(o.data)[3] for o in opt.rdata] == ([] if scope is None else [scope])


def test_answers_of_other_names_hang_on_no_subnet() -> None:
    question = dnslib.DNSRecord.question("web.service.consul")
    question.add_ar(dnslib.EDNS0(udp_len=1232, opts=[subnet_option(1, 24, bytes((192, 0, 2)))]))
    response = answer(TABLE, bytes(question.pack()), 1232, lambda n: 0)
    assert isinstance(response, bytes)
    (opt,) = [row for row in dnslib.DNSRecord.parse(response).ar if row.rtype == dnslib.QTYPE.OPT]
    assert [bytes(o.data)[3] for o in opt.rdata] == [0]


def test_a_question_that_the_agent_leaves_unanswered_is_servfail() -> None:
    core, said, answers = Core(), list[tuple[int, bytes]](), list[bytes]()
    core.later.say = lambda number, name, origin: said.append((number, name))
    pending = answer(TABLE, bytes(dnslib.DNSRecord.question("known.query.consul").pack()), 512, lambda n: 0)
    assert isinstance(pending, Ask)
    for _ in range(257):
        core.later.resolve(pending, b"", answers.append)
    assert len(said) == 256 and len(answers) == 1 and answers[0][3] & 0xF == m.SERVFAIL, "one more than may wait"
    core.later.told(1, FOUND[b"known"])
    assert len(answers) == 2 and answers[1][3] & 0xF == m.NOERROR
    deadline = core.later.next_deadline()
    assert deadline is not None
    core.later.sweep(deadline + 1)
    core.later.told(2, FOUND[b"known"])
    assert len(answers) == 257 and core.later.next_deadline() is None and core.counters.query_failed == 255
