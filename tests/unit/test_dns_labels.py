# SPDX-License-Identifier: Apache-2.0
"""Instances by label in DNS, the meta of nodes as TXT, and addresses spelled in names."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import dnslib
import pytest

from plait.dns import message as m
from plait.dns.answer import answer
from plait.dns.records import label_word, text_record
from plait.dns.table import Table
from plait.dns.zone import Zone, build_table
from plait.model.cluster import Container, Instance, Node, Snapshot

SNAPSHOT = Snapshot(
    me="A",
    nodes={"A": Node("A", "1", IPv4Address("192.0.2.1"))},
    containers={("A", "c"): Container("c", "box", "A", "docker", labels={"app": "image", "com.example/Team": "Blue Sky"})},
    instances={
        ("A", "1"): Instance("1", "web", "A", "10.28.0.1", 80, meta={"app": "web", "tier": "prod"}),
        ("A", "2"): Instance("2", "web", "A", "10.28.0.2", 80, meta={"app": "web", "tier": "test"}),
        ("A", "3"): Instance("3", "db", "A", "10.28.0.3", 80, meta={"app": "db"}),
        ("A", "4"): Instance("4", "db", "A", "10.28.0.3", 90, meta={"app": "sql"}),
        ("A", "5"): Instance("5", "box", "A", "10.28.0.5", 80, container="box", meta={"app": "box"}),
        ("A", "6"): Instance("6", "out", "A", "db.example.org", 5432, meta={"where": "outside"}),
        ("A", "7"): Instance("7", "loop", "A", "where--loop.label.consul", 1, meta={"where": "loop"}),
        ("A", "8"): Instance("8", "down", "A", "10.28.0.8", 80, down=True, meta={"app": "web", "only": "down"}),
    },
)
TABLE = build_table(SNAPSHOT)


def ask(name: str, qtype: str = "A", table: Table = TABLE) -> dnslib.DNSRecord:
    response = answer(table, bytes(dnslib.DNSRecord.question(name, qtype).pack()), 1232, lambda n: 0)
    assert isinstance(response, bytes)
    return dnslib.DNSRecord.parse(response)


def data(record: dnslib.DNSRecord) -> set[str]:
    return {str(rr.rdata) for rr in record.rr}


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("app--web.label.consul", {1, 2}),
        ("app--web.label.dc1.consul", {1, 2}),
        ("APP--Web.label.consul", {1, 2}),
        ("app--web.tier--prod.label.consul", {1}),
        ("app--web.not--tier--test.label.consul", {1}),
        ("app--web.not--tier.label.consul", set()),
        ("app--web--db.label.consul", {1, 2, 3}),
        ("app.not--app--web--db.label.consul", {3, 5}),
        ("tier.label.consul", {1, 2}),
        ("app--image.label.consul", set()),
        ("com_example_team--blue_sky.label.consul", {5}),
        ("only.label.consul", set()),
        ("not--app--web.label.consul", set()),
        ("nix.label.consul", set()),
        ("app--web.label.dc2.consul", set()),
    ],
)
def test_instances_by_label(name: str, last: set[int]) -> None:
    record = ask(name)
    assert data(record) == {f"10.28.0.{number}" for number in last}
    assert record.header.rcode == (m.NOERROR if last else m.NXDOMAIN)


def test_srv_tells_instances_at_one_address_apart() -> None:
    record = ask("app--sql.label.consul", "SRV")
    assert data(record) == {"1 1 90 0a1c0003.addr.dc1.consul."}
    assert [str(rr.rdata) for rr in record.ar] == ["10.28.0.3"]
    assert ask("app--sql.label.consul", "AAAA").header.rcode == m.NOERROR


def test_a_host_name_is_an_alias_and_one_that_leads_back_ends() -> None:
    assert data(ask("where--outside.label.consul")) == {"db.example.org."}
    record = ask("where--loop.label.consul")
    assert (record.header.rcode, record.rr) == (m.NOERROR, [])
    assert data(ask("where--loop.label.consul", "SRV")) == {"1 1 1 where--loop.label.consul."}


def test_labels_follow_the_container() -> None:
    zone = Zone(SNAPSHOT)
    changed = Container("c", "box", "A", "docker", labels={"fresh": "yes"})
    zone.advance(replace(SNAPSHOT, revision=2, containers={("A", "c"): changed}), {("containers", ("A", "c"))})
    assert data(ask("fresh--yes.label.consul", table=zone.table)) == {"10.28.0.5"}
    assert ask("com_example_team.label.consul", table=zone.table).header.rcode == m.NXDOMAIN


@pytest.mark.parametrize(
    ("text", "word"), [("App", b"app"), ("a.b/c", b"a_b_c"), ("a--b", b"a__b"), ("-a-b-", b"_a-b_"), ("", b""), ("ä", b"_"), ("-", b"_")]
)
def test_how_labels_are_spelled(text: str, word: bytes) -> None:
    assert label_word(text) == word


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("rack", "7", b"rack=7"),
        ("a=b", "c=d", b"a`=b=c=d"),
        ("a`", "", b"a``="),
        (" a b ", "x", b"` a b` =x"),
        ("rfc1035-spf", "v=1", b"v=1"),
    ],
)
def test_meta_as_text(key: str, value: str, text: bytes) -> None:
    assert text_record(key, value) == (m.TXT, bytes((len(text),)) + text)


def test_an_address_in_a_name_is_given_to_those_who_ask_for_another_type_too() -> None:
    record = ask("0a1c0002.addr.consul", "AAAA")
    assert (record.header.rcode, record.rr, record.auth[0].rtype) == (m.NOERROR, [], m.SOA)
    assert [(rr.rtype, str(rr.rdata)) for rr in record.ar] == [(m.A, "10.28.0.2")]
    assert ask("0a1c0002.addr.consul", "A").ar == []
