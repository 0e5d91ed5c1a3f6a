# SPDX-License-Identifier: Apache-2.0
"""What is answered to which question, flags and sections included."""

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import dnslib
import pytest

from plait.dns import message as m
from plait.dns import zone
from plait.dns.answer import Forward, answer
from plait.dns.order import arrange, shuffle
from plait.dns.records import reverse_zones
from plait.dns.table import HIDDEN, apply_changes, diff_tables
from plait.dns.zone import build_table
from plait.model.cluster import Container, Endpoint, Instance, Network, Node, Snapshot
from plait.model.discovery import CatalogNode
from plait.services import views

IP = IPv4Address


def snapshot(**changes: object) -> Snapshot:
    """A is this node, B lives, C is dead; `web` runs on A, `db` is an endpoint on B, `old` has ended."""
    fields: dict[str, object] = {
        "me": "A",
        "revision": 7,
        "nodes": {
            "A": Node("A", "1", IP("192.0.2.1"), tunnel=IP("10.28.0.1"), meta={"server": ""}),
            "B": Node("B", "2", IP("192.0.2.2"), meta={"rack": "7"}),
            "C": Node("C", "3", IP("192.0.2.3")),
        },
        "alive": frozenset({"B"}),
        "networks": {"default": Network("default", IPv4Network("10.28.0.0/16"), IP("10.28.255.254"), 20)},
        "endpoints": {
            "e1": Endpoint("e1", "mesh", "B", IP("10.29.0.9"), "", "pl-e1", "docker", name="DB", aliases=("sql",)),
            "e2": Endpoint("e2", "mesh", "C", IP("10.29.0.8"), "", "pl-e2", "docker", name="dead"),
        },
        "containers": {
            ("A", "c1"): Container("c1", "web", "A", "docker", addresses={"default": IP("10.28.0.2"), "foreign": IP("172.30.0.2")}),
            ("A", "c2"): Container("c2", "old", "A", "docker", state="exited", addresses={"default": IP("10.28.0.3")}),
            ("B", "c3"): Container("c3", "plain", "B", "docker", addresses={"default": IP("172.17.0.2")}),
        },
        "instances": {
            ("A", "web"): Instance("web", "web", "A", "10.28.0.2", 80, ("http", "v1.2")),
            ("B", "web"): Instance("web", "web", "B", "", 8080),
            ("C", "web"): Instance("web", "web", "C", "10.28.0.77", 80),
            ("A", "out"): Instance("out", "out", "A", "db.example.org", 5432),
            ("A", "six"): Instance("six", "six", "A", "2001:db8::1", 1),
            ("A", "bad"): Instance("bad", "bad", "A", "a..b", 1),
            ("A", "x.web"): Instance("x", "x.web", "A", "10.28.0.66", 1),
        },
    }
    return Snapshot(**{**fields, **changes})  # type: ignore[arg-type]


TABLE = build_table(snapshot())


def resolve(name: str, qtype: str = "A", *, table: object = TABLE, recursion: bool = False, **header: int) -> dnslib.DNSRecord:
    query = dnslib.DNSRecord.question(name, qtype)
    for key, value in header.items():
        setattr(query.header, key, value)
    response = answer(table, bytes(query.pack()), 1232, lambda n: 0, recursion=recursion)  # type: ignore[arg-type]
    assert isinstance(response, bytes)
    return dnslib.DNSRecord.parse(response)


def data(record: dnslib.DNSRecord) -> set[str]:
    return {str(rr.rdata) for rr in record.rr}


@pytest.mark.parametrize(
    ("name", "qtype", "wanted"),
    [
        ("web.service.consul", "A", {"10.28.0.2", "192.0.2.2"}),
        ("web.service.dc1.consul", "A", {"10.28.0.2", "192.0.2.2"}),
        ("web.service.dc1.dc.consul", "A", {"10.28.0.2", "192.0.2.2"}),
        ("http.web.service.consul", "A", {"10.28.0.2"}),
        ("v1.2.web.service.dc1.consul", "A", {"10.28.0.2"}),
        ("_web._tcp.service.consul", "SRV", {"1 1 80 0a1c0002.addr.dc1.consul.", "1 1 8080 b.node.dc1.consul."}),
        ("_web._tcp.consul", "SRV", {"1 1 80 0a1c0002.addr.dc1.consul.", "1 1 8080 b.node.dc1.consul."}),
        ("_web._http.service.consul", "SRV", {"1 1 80 0a1c0002.addr.dc1.consul."}),
        ("out.service.consul", "A", {"db.example.org."}),
        ("out.service.consul", "SRV", {"1 1 5432 db.example.org."}),
        ("six.service.consul", "AAAA", {"2001:db8::1"}),
        ("20010db8000000000000000000000001.addr.consul", "AAAA", {"2001:db8::1"}),
        ("0A1c0002.addr.dc1.consul", "A", {"10.28.0.2"}),
        ("consul.service.consul", "SRV", {"1 1 8300 a.node.dc1.consul."}),
        ("b.node.consul", "A", {"192.0.2.2"}),
        ("b.node.dc1.consul", "TXT", {'"rack=7"'}),
        ("ns.consul", "A", {"192.0.2.1"}),
        ("web.virtual.consul", "A", {"10.28.0.2", "192.0.2.2"}),
        ("web.virtual.dc1.consul", "A", {"10.28.0.2", "192.0.2.2"}),
        ("web", "A", {"10.28.0.2"}),
        ("six", "AAAA", {"2001:db8::1"}),
        ("six", "SRV", {"1 1 1 20010db8000000000000000000000001.addr.dc1.consul."}),
        ("web.plait", "A", {"10.28.0.2"}),
        ("web.default", "A", {"10.28.0.2"}),
        ("web.default.plait", "A", {"10.28.0.2"}),
        ("db", "A", {"10.29.0.9"}),
        ("sql.mesh", "A", {"10.29.0.9"}),
        ("2.0.28.10.in-addr.arpa", "PTR", {"web.plait."}),
        ("1.0.28.10.in-addr.arpa", "PTR", {"a.node.dc1.consul."}),
        ("2.2.0.192.in-addr.arpa", "PTR", {"b.node.dc1.consul."}),
        ("consul", "NS", {"a.node.dc1.consul.", "b.node.dc1.consul."}),
        ("plait", "SOA", {"ns.consul. hostmaster.consul. 7 3600 600 86400 0"}),
    ],
)
def test_names_that_exist(name: str, qtype: str, wanted: set[str]) -> None:
    record = resolve(name, qtype)
    assert data(record) == wanted
    assert (record.header.rcode, record.header.aa, record.header.rd, record.header.ra, record.header.tc) == (0, 1, 1, 0, 0)
    assert {rr.ttl for rr in record.rr} == {0}
    assert {str(rr.rname).lower() for rr in record.rr} == {name.lower() + "."}


@pytest.mark.parametrize(
    ("name", "qtype", "soa"),
    [
        ("web.service.consul", "AAAA", "consul."),
        ("consul", "A", "consul."),
        ("service.consul", "A", "consul."),
        ("_tcp.service.consul", "SRV", "consul."),
        ("dc1.consul", "A", "consul."),
        ("2.web.service.consul", "A", "consul."),
        ("web.plait", "AAAA", "plait."),
        ("web", "AAAA", "web."),
        ("2.0.28.10.in-addr.arpa", "A", "28.10.in-addr.arpa."),
        ("0a1c0002.addr.consul", "AAAA", "consul."),
    ],
)
def test_no_record_of_the_type_is_nodata(name: str, qtype: str, soa: str) -> None:
    record = resolve(name, qtype)
    assert (record.header.rcode, record.header.aa, len(record.rr)) == (m.NOERROR, 1, 0)
    assert [(str(rr.rname), rr.rtype) for rr in record.auth] == [(soa, m.SOA)]


@pytest.mark.parametrize("name", ["web.service.consul", "WEB.service.consul", "service.consul", "nix.service.consul", "consul"])
def test_the_zone_of_any_name_of_the_domain_is_told_as_consul_tells_it(name: str) -> None:
    servers = {"a.node.dc1.consul.", "b.node.dc1.consul."}
    for qtype, answered in (("SOA", {"ns.consul. hostmaster.consul. 7 3600 600 86400 0"}), ("NS", servers)):
        record = resolve(name, qtype)
        assert (record.header.rcode, record.header.aa, data(record)) == (m.NOERROR, 1, answered)
        assert {str(rr.rname) for rr in record.rr} == {"consul."}
        assert {str(rr.rname) for rr in record.ar} == servers
        assert {str(rr.rdata) for rr in record.auth} == (servers if qtype == "SOA" else set())


def test_a_container_may_have_no_names() -> None:
    off = {"plait.dns": "off"}
    endpoint = Endpoint("e1", "mesh", "B", IP("10.29.0.9"), "", "pl-e1", "docker", name="db", aliases=("sql",), labels=off)
    box = Container("c1", "web", "A", "docker", labels=off, addresses={"default": IP("10.28.0.2")})
    table = build_table(snapshot(endpoints={"e1": endpoint}, containers={("A", "c1"): box}))
    for name in ("db.plait", "sql.mesh", "web.plait", "9.0.29.10.in-addr.arpa"):
        assert not data(resolve(name, "ANY", table=table)), name
    assert data(resolve("web.service.consul", table=table)) == {"10.28.0.2", "192.0.2.2"}, "services are named by who registers them"
    on = build_table(snapshot(endpoints={"e1": replace(endpoint, labels={"plait.dns": "on"})}))
    assert data(resolve("db.plait", table=on)) == {"10.29.0.9"}


def test_a_node_without_an_agent_has_its_pointer_too() -> None:
    outside = {"ext.dc": CatalogNode("ext.dc", "2001:db8::7"), "named": CatalogNode("named", "host.example.org")}
    table = build_table(snapshot(catalog_nodes=outside))
    pointer = dnslib.DNSLabel(IPv6Address("2001:db8::7").reverse_pointer)
    assert data(resolve(str(pointer), "PTR", table=table)) == {"ext.dc.node.dc1.consul."}


@pytest.mark.parametrize(
    ("name", "soa"),
    [
        ("nix.service.consul", ["consul."]),
        ("web.service.dc9.consul", ["consul."]),
        ("web.connect.consul", ["consul."]),
        ("c.node.consul", ["consul."]),
        ("old.plait", ["plait."]),
        ("plain.plait", ["plait."]),
        ("x.web.service.consul", ["consul."]),
        ("bad.service.consul", ["consul."]),
        ("0a1c00.addr.consul", ["consul."]),
        ("+a1c0002.addr.consul", ["consul."]),
        ("9.9.28.10.in-addr.arpa", ["28.10.in-addr.arpa."]),
        ("dead", ["dead."]),
        ("old", ["old."]),
        ("localhost", ["localhost."]),
    ],
)
@pytest.mark.parametrize("recursion", [False, True])
def test_what_is_not_there_is_nxdomain_even_with_upstreams(name: str, soa: list[str], recursion: bool) -> None:
    record = resolve(name, recursion=recursion)
    assert (record.header.rcode, record.header.aa, record.header.ra) == (m.NXDOMAIN, 1, int(recursion))
    assert [str(rr.rname) for rr in record.auth] == soa


@pytest.mark.parametrize("name", ["1.0.0.127.in-addr.arpa", "8.b.d.0.1.0.0.2.ip6.arpa"])
def test_an_address_that_nobody_else_is_asked_about_has_no_name(name: str) -> None:
    for qtype in ("PTR", "A"):
        record = resolve(name, qtype)
        assert (record.header.rcode, record.header.aa, [str(rr.rname) for rr in record.auth]) == (m.NXDOMAIN, 1, ["consul."])
    assert resolve("in-addr.arpa", "NS").header.rcode == m.REFUSED, "the zone itself is somebody's"


def test_foreign_names_are_forwarded_or_refused() -> None:
    assert resolve("example.org").header.rcode == m.REFUSED
    assert resolve("example.org").header.aa == 0
    assert resolve("example.org", recursion=True, rd=0).header.rcode == m.REFUSED
    for name, qtype in (("example.org", "A"), ("com", "DS"), ("six", "DS"), ("six", "NS"), ("1.0.0.127.in-addr.arpa", "PTR"), (".", "NS")):
        query = bytes(dnslib.DNSRecord.question(name, qtype).pack())
        assert isinstance(answer(TABLE, query, 1232, lambda n: 0, recursion=True), Forward)


@pytest.mark.parametrize(
    ("name", "qtype", "header", "rcode"),
    [("consul", "AXFR", {}, m.NOTIMP), ("web", "A", {"opcode": 5}, m.NOTIMP), ("web", "IXFR", {}, m.NOTIMP)],
)
def test_what_is_not_implemented_says_so(name: str, qtype: str, header: dict[str, int], rcode: int) -> None:
    assert resolve(name, qtype, **header).header.rcode == rcode


def test_junk_with_a_header_gets_formerr_and_the_rest_silence() -> None:
    query = bytes(dnslib.DNSRecord.question("web").pack())
    broken = answer(TABLE, query[:-1], 1232, lambda n: 0)
    assert isinstance(broken, bytes) and broken[:2] == query[:2] and broken[3] & 0xF == m.FORMERR
    update = answer(TABLE, query[:2] + b"\x28" + query[3:12], 1232, lambda n: 0)
    assert isinstance(update, bytes) and update[3] & 0xF == m.NOTIMP
    assert answer(TABLE, query[:11], 1232, lambda n: 0) is None
    assert answer(TABLE, query[:2] + b"\x80" + query[3:], 1232, lambda n: 0) is None


def test_other_classes_are_refused() -> None:
    query = bytes(dnslib.DNSRecord(q=dnslib.DNSQuestion("version.bind", m.TXT, 3)).pack())
    response = answer(TABLE, query, 1232, lambda n: 0)
    assert isinstance(response, bytes) and response[3] & 0xF == m.REFUSED


def test_the_spelling_of_the_question_is_kept() -> None:
    record = resolve("wEb.SERVICE.cOnSuL", "AAAA")
    assert str(record.q.qname) == "wEb.SERVICE.cOnSuL."
    assert str(record.auth[0].rname) == "cOnSuL."


def test_srv_and_ns_bring_the_addresses() -> None:
    record = resolve("web.service.consul", "SRV")
    assert {(str(rr.rname), str(rr.rdata)) for rr in record.ar} == {
        ("0a1c0002.addr.dc1.consul.", "10.28.0.2"),
        ("b.node.dc1.consul.", "192.0.2.2"),
    }
    assert len(resolve("consul", "NS").ar) == 2
    assert {rr.rtype for rr in resolve("web.service.consul", "ANY").rr} == {m.A, m.SRV}


@pytest.mark.parametrize(("size", "stream", "count"), [(0, False, 29), (1232, False, 50), (700, False, 40), (0, True, 50)])
def test_fifty_addresses(size: int, stream: bool, count: int) -> None:
    instances = {("A", str(n)): Instance(str(n), "big", "A", f"10.28.1.{n}", 80) for n in range(50)}
    query = dnslib.DNSRecord.question("big.service.consul")
    if size:
        query.add_ar(dnslib.EDNS0(udp_len=size))
    table = build_table(snapshot(instances=instances))
    response = answer(table, bytes(query.pack()), 1232, random.Random(1).randrange, stream=stream)
    assert isinstance(response, bytes)
    record = dnslib.DNSRecord.parse(response)
    assert len(record.rr) == count and record.header.tc == (count < 50)
    assert stream or len(response) <= max(size, 512)


def test_every_order_comes() -> None:
    chooser, seen = random.Random(3).randrange, set()
    for _ in range(200):
        records = [(m.A, b"1"), (m.A, b"2"), (m.A, b"3")]
        shuffle(records, chooser)
        seen.add(tuple(records))
    assert len(seen) == 6


def changed() -> Iterator[Snapshot]:
    yield snapshot()
    yield snapshot(containers={})
    yield snapshot(alive=frozenset({"B", "C"}), revision=9)
    yield snapshot(networks={})


def test_changes_name_only_what_changed_and_lead_to_the_new_table() -> None:
    for before in changed():
        for after in changed():
            old, new = build_table(before), build_table(after)
            changes = diff_tables(old, new)
            if changes is None:
                assert old.names == new.names and old.zones == new.zones
                continue
            assert all(delta is None or delta[0] or delta[1] or name not in old.names for name, delta in changes.names.items())
            apply_changes(old, changes)
            assert (old.names, old.zones, old.serial) == (new.names, new.zones, new.serial)
    assert diff_tables(TABLE, build_table(snapshot(revision=99))) is None
    gone = diff_tables(TABLE, build_table(snapshot(containers={})))
    assert gone is not None
    seen = {name for name in gone.names if not name.startswith(HIDDEN)}
    assert seen == {b"web", b"web.plait", b"web.default", b"web.default.plait", b"default.plait", b"2.0.28.10.in-addr.arpa"}
    with pytest.raises(ValueError, match="different domains"):
        diff_tables(TABLE, build_table(snapshot(), domain="other"))


@pytest.mark.parametrize(
    ("subnet", "count", "first"),
    [
        ("10.0.0.0/8", 1, b"10.in-addr.arpa"),
        ("10.28.16.0/20", 16, b"16.28.10.in-addr.arpa"),
        ("10.28.0.4/30", 4, b"4.0.28.10.in-addr.arpa"),
    ],
)
def test_reverse_zones_cover_the_subnet_and_no_more(subnet: str, count: int, first: bytes) -> None:
    zones = list(reverse_zones(IPv4Network(subnet)))
    assert len(zones) == count and zones[0] == first


def test_the_service_consul_is_where_the_http_api_says() -> None:
    assert (zone.SERVER_META, zone.SERVER_PORT) == (views.SERVER_META, views.SERVER_PORT)


def test_an_endpoint_resolves_before_its_container_is_reported_running() -> None:
    table = build_table(snapshot(containers={("B", "c"): Container("c", "DB", "B", "docker", state="created")}))
    assert data(resolve("db", table=table)) == {"10.29.0.9"}


def test_a_dotted_container_name_takes_nothing_else_of_the_outside() -> None:
    endpoint = Endpoint("e", "mesh", "A", IP("10.29.0.5"), "", "pl-e", "docker", name="a.example.org")
    table = build_table(snapshot(endpoints={"e": endpoint}))
    assert data(resolve("a.example.org", table=table)) == {"10.29.0.5"}
    assert resolve("example.org", table=table).header.rcode == m.REFUSED


def srv(weight: int, port: int) -> m.Record:
    return m.SRV, b"".join(number.to_bytes(2, "big") for number in (1, weight, port)) + m.wire_name(b"a.node.consul")


def test_weights_decide_how_often_an_srv_record_comes_first() -> None:
    chooser, first = random.Random(5).randrange, {1: 0, 2: 0, 3: 0}
    for _ in range(4000):
        records = [srv(0, 1), srv(1, 2), srv(3, 3)]
        arrange(records, chooser)
        first[int.from_bytes(records[0][1][4:6], "big")] += 1
        assert records[-1] == srv(0, 1)
    assert first[1] == 0
    assert 2850 < first[3] < 3150


def test_equal_weights_leave_every_order_equally_likely() -> None:
    chooser, same = random.Random(5).randrange, random.Random(5).randrange
    records, shuffled = [srv(2, port) for port in range(9)], [srv(2, port) for port in range(9)]
    arrange(records, chooser)
    shuffle(shuffled, same)
    assert records == shuffled


def test_an_answer_follows_the_weights() -> None:
    table = build_table(
        snapshot(
            instances={("A", f"w{n}"): Instance(f"w{n}", "weighed", "A", port=n, weight_passing=weight) for n, weight in ((1, 1), (2, 99))}
        )
    )
    query = bytes(dnslib.DNSRecord.question("weighed.service.consul", "SRV").pack())
    chooser, heavy = random.Random(5).randrange, 0
    for _ in range(200):
        response = answer(table, query, 4096, chooser)
        assert isinstance(response, bytes)
        heavy += dnslib.DNSRecord.parse(response).rr[0].rdata.port == 2
    assert heavy > 180
