# SPDX-License-Identifier: Apache-2.0
"""How much of an answer fits where, what says so, and how long it may be kept."""

import random
from ipaddress import IPv4Address, IPv4Network

import dnslib
import pytest

from plait.dns import message as m
from plait.dns.answer import answer
from plait.dns.options import Options
from plait.dns.table import Table
from plait.dns.zone import Zone, build_table
from plait.model.cluster import Instance, Network, Node, Snapshot
from plait.model.discovery import Check

NODES = {"a": Node("a", "1", IPv4Address("192.0.2.1")), "b": Node("b", "2", IPv4Address("192.0.2.2"))}


def snapshot(count: int, **changes: object) -> Snapshot:
    instances = {("a", str(n)): Instance(str(n), "web", "a", f"10.28.{n // 250}.{n % 250}", 80 + n % 9) for n in range(count)}
    instances["a", "near"] = Instance("near", "near-db", "a", "", 1)
    networks = {"default": Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.255.254"), 20)}
    fields = {"me": "a", "revision": 7, "nodes": NODES, "alive": frozenset({"b"}), "networks": networks, "instances": instances}
    return Snapshot(**{**fields, **changes})  # type: ignore[arg-type]


TABLES = {count: build_table(snapshot(count)) for count in (1, 9, 50, 500, 5000)}


def ask(
    table: Table, name: str, qtype: str = "A", *, edns: int | None = None, stream: bool = False, options: Options | None = None
) -> tuple[dnslib.DNSRecord, bytes]:
    query = dnslib.DNSRecord.question(name, qtype)
    if edns is not None:
        query.add_ar(dnslib.EDNS0(udp_len=edns))
    response = answer(
        table, bytes(query.pack()), 8192, random.Random(5).randrange, stream=stream, recursion=True, options=options or Options()
    )
    assert isinstance(response, bytes)
    return dnslib.DNSRecord.parse(response), response


@pytest.mark.parametrize("qtype", ["A", "SRV"])
@pytest.mark.parametrize("count", sorted(TABLES))
@pytest.mark.parametrize(
    ("edns", "stream", "limit"), [(None, False, 512), (100, False, 512), (1232, False, 1232), (4096, False, 4096), (None, True, 65535)]
)
def test_answers_hold_what_fits_and_say_what_does_not(count: int, qtype: str, edns: int | None, stream: bool, limit: int) -> None:
    record, response = ask(TABLES[count], "web.service.consul", qtype, edns=edns, stream=stream)
    each = 16 if qtype == "A" else 2 + 10 + 6 + len("0a1c0000addrdc1consul") + 5 + 16
    assert len(response) <= limit
    assert record.header.tc == (len(record.rr) < count), "whatever is left out is marked"
    assert len(record.rr) == count or limit - len(response) < 2 * each, "the room is used"
    assert len({str(rr.rdata) for rr in record.rr}) == len(record.rr)
    if qtype == "SRV":
        assert {str(rr.rdata.target) for rr in record.rr} == {str(rr.rname) for rr in record.ar if rr.rtype == m.A}
    if edns is not None:
        assert [rr.edns_len for rr in record.ar if rr.rtype == m.OPT] == [m.ADVERTISED_SIZE]


def test_fifty_are_whole_with_edns_and_five_hundred_over_tcp() -> None:
    assert len(ask(TABLES[50], "web.service.consul", edns=1232)[0].rr) == 50
    assert len(ask(TABLES[500], "web.service.consul", "SRV", stream=True)[0].rr) == 500
    assert len(ask(TABLES[5000], "web.service.consul", stream=True)[0].rr) > 4000


def test_every_instance_is_shown_to_somebody_however_many_there_are() -> None:
    table, chooser, seen = TABLES[50], random.Random(1).randrange, set()
    for _ in range(60):
        response = answer(table, bytes(dnslib.DNSRecord.question("web.service.consul").pack()), 8192, chooser)
        assert isinstance(response, bytes)
        seen |= {str(rr.rdata) for rr in dnslib.DNSRecord.parse(response).rr}
    assert len(seen) == 50


def test_limits_on_the_number_of_records() -> None:
    table = TABLES[50]
    few = Options(a_record_limit=2)
    for qtype, stream in (("A", False), ("A", True), ("ANY", True)):
        record, _ = ask(table, "web.service.consul", qtype, stream=stream, options=few)
        assert (len(record.rr), record.header.tc) == (2, 0), "a choice, not a truncation"
    assert len(ask(table, "web.service.consul", "SRV", stream=True, options=few)[0].rr) == 50
    plain = Options(udp_answer_limit=3)
    assert [(len(r.rr), r.header.tc) for r in [ask(table, "web.service.consul", "A", options=plain)[0]]] == [(3, 1)]
    assert len(ask(table, "web.service.consul", "A", edns=1232, options=plain)[0].rr) == 50, "not with EDNS"
    assert len(ask(table, "web.service.consul", "A", stream=True, options=plain)[0].rr) == 50, "nor over TCP"
    assert len(ask(table, "web.service.consul", "A", options=Options(udp_answer_limit=20))[0].rr) == 8
    assert ask(TABLES[1], "web.service.consul", "A", options=plain)[0].header.tc == 0


def test_meta_of_the_nodes_stands_beside_srv_if_that_is_asked_for() -> None:
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"), meta={"rack": "7", "rfc1035-x": "y"})}
    table = build_table(Snapshot(me="a", revision=7, nodes=nodes, instances={("a", "web"): Instance("web", "web", "a", "", 80)}))
    wanted, _ = ask(table, "web.service.consul", "SRV", edns=1232, options=Options(node_meta_txt=True))
    beside = {(str(rr.rname), rr.rtype, str(rr.rdata)) for rr in wanted.ar if rr.rtype != m.OPT}
    name = "a.node.dc1.consul."
    assert beside == {(name, m.A, "192.0.2.1"), (name, m.TXT, '"rack=7"'), (name, m.TXT, '"y"')}
    assert {rr.rtype for rr in ask(table, "web.service.consul", "SRV")[0].ar} == {m.A}
    assert {rr.rtype for rr in ask(table, "consul", "NS", options=Options(node_meta_txt=True))[0].ar} == {m.A}


def test_who_asks_for_it_gets_unmarked_truncation() -> None:
    record, _ = ask(TABLES[50], "web.service.consul", options=Options(truncate=False))
    assert record.header.tc == 0 and 20 < len(record.rr) < 50


@pytest.mark.parametrize(
    ("name", "qtype", "ttl"),
    [
        ("web.service.consul", "A", 30),
        ("WEB.service.dc1.consul", "SRV", 30),
        ("_web._tcp.consul", "SRV", 30),
        ("web.virtual.consul", "A", 30),
        ("web", "A", 30),
        ("near-db.service.consul", "A", 7),
        ("consul.service.consul", "A", 5),
        ("a.node.consul", "A", 60),
        ("0a1c0001.addr.dc1.consul", "A", 60),
        ("consul", "NS", 0),
        ("1.0.28.10.in-addr.arpa", "PTR", 0),
    ],
)
def test_ttls(name: str, qtype: str, ttl: int) -> None:
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"), meta={"server": ""})}
    table = build_table(snapshot(2, nodes=nodes))
    options = Options(node_ttl=60, service_ttl={b"*": 5, b"web": 30, b"near-*": 7, b"ne*": 6}, soa=(1, 2, 3, 4))
    record, _ = ask(table, name, qtype, options=options)
    assert {rr.ttl for rr in (*record.rr, *record.ar)} == {ttl} and record.rr
    assert {rr.ttl for rr in ask(table, name, qtype)[0].rr} == {0}, "nothing may be kept unless somebody says so"


@pytest.mark.parametrize(("name", "qtype", "rcode"), [("nix.service.consul", "A", m.NXDOMAIN), ("web.service.consul", "AAAA", m.NOERROR)])
def test_absence_is_kept_for_the_minimum_of_the_soa(name: str, qtype: str, rcode: int) -> None:
    record, _ = ask(TABLES[1], name, qtype, options=Options(soa=(11, 12, 13, 14), service_ttl={b"*": 99}))
    assert record.header.rcode == rcode and record.header.aa == 1 and not record.rr
    (soa,) = record.auth
    assert (soa.ttl, tuple(soa.rdata.times)) == (14, (7, 11, 12, 13, 14)), "RFC 2308: both the TTL and the last number"


def test_the_soa_comes_with_name_servers_and_their_addresses() -> None:
    record, _ = ask(TABLES[1], "consul", "SOA")
    assert [rr.rtype for rr in record.rr] == [m.SOA]
    assert {str(rr.rdata) for rr in record.auth} == {"a.node.dc1.consul.", "b.node.dc1.consul."}
    assert {(str(rr.rname), str(rr.rdata)) for rr in record.ar} == {
        ("a.node.dc1.consul.", "192.0.2.1"),
        ("b.node.dc1.consul.", "192.0.2.2"),
    }
    record, _ = ask(TABLES[1], "consul", "NS")
    assert len(record.rr) == 2 and len(record.ar) == 2
    assert {rr.rtype for rr in ask(TABLES[1], "consul", "ANY")[0].rr} == {m.SOA, m.NS}


def test_the_other_domain_answers_in_its_own_name() -> None:
    options = Options(alt_domain=b"corp.example", service_ttl={b"web": 3})
    record, _ = ask(TABLES[1], "Web.Service.corp.example", "SRV", options=options)
    assert str(record.rr[0].rname) == "Web.Service.corp.example." and record.rr[0].ttl == 3
    assert str(record.rr[0].rdata.target) == str(record.ar[0].rname) == "0a1c0000.addr.dc1.corp.example."
    assert len(ask(TABLES[1], str(record.ar[0].rname), "A", options=options)[0].rr) == 1, "and what it names resolves"
    absent, _ = ask(TABLES[1], "nix.service.corp.example", options=options)
    assert absent.header.rcode == m.NXDOMAIN and str(absent.auth[0].rname) == "corp.example."
    assert str(absent.auth[0].rdata.mname) == "ns.corp.example."
    assert str(ask(TABLES[1], "corp.example", "NS", options=options)[0].rr[0].rdata).endswith(".dc1.corp.example.")
    assert str(ask(TABLES[1], "web.service.consul", "SRV", options=options)[0].rr[0].rdata.target).endswith("consul.")


def test_only_passing_leaves_out_who_warns() -> None:
    checks = {("a", "c"): Check("c", "a", "c", service_id="near", status="warning")}
    warned = snapshot(1, checks=checks)
    assert ask(Zone(warned).table, "near-db.service.consul")[0].header.rcode == m.NOERROR
    zone = Zone(warned, only_passing=True)
    assert ask(zone.table, "near-db.service.consul")[0].header.rcode == m.NXDOMAIN
    zone.advance(snapshot(1, checks={}), [("checks", ("a", "c"))])
    assert ask(zone.table, "near-db.service.consul")[0].header.rcode == m.NOERROR
