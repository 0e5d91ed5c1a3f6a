# SPDX-License-Identifier: Apache-2.0
"""The codec against junk, and against dnslib as the second opinion."""

from ipaddress import IPv4Address

import dnslib
from hypothesis import given
from hypothesis import strategies as st

from plait.dns import message as m
from plait.dns.answer import Forward, answer
from plait.dns.zone import build_table
from plait.model.cluster import Instance, Node, Snapshot

NODES = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
INSTANCES = {("a", str(n)): Instance(str(n), "web", "a", f"192.0.2.{n}", 80, ("t",)) for n in range(1, 60)}
TABLE = build_table(Snapshot(me="a", nodes=NODES, instances=INSTANCES))
LABEL = st.text("abcXYZ019-_*", min_size=1, max_size=63).map(str.encode)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(b".".join).filter(lambda name: len(name) < 250)
KNOWN = st.sampled_from([b"web.service.consul", b"t.web.service.consul", b"nix.service.consul", b"web", b"example.org", b"consul", b""])
QTYPE = st.sampled_from([m.A, m.AAAA, m.SRV, m.ANY, m.SOA, m.NS, m.TXT, m.PTR, 65280])


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    name = m.wire_name(draw(NAME | KNOWN))
    body = name + draw(QTYPE).to_bytes(2, "big") + b"\0\1"
    size = draw(st.none() | st.integers(0, 65535))
    opt = b"" if size is None else b"\0\0\x29" + size.to_bytes(2, "big") + bytes(6)
    return draw(st.binary(min_size=2, max_size=2)) + b"\1\0\0\1\0\0\0\0" + (b"\0\0" if size is None else b"\0\1") + body + opt


@given(st.binary(max_size=600), st.booleans())
def test_junk_never_crashes(junk: bytes, stream: bool) -> None:
    for data in (junk, bytes(2) + b"\1\0\0\1\0\0\0\0\0\1" + junk):
        response = answer(TABLE, data, 1232, lambda n: n - 1, stream=stream, recursion=True)
        if isinstance(response, bytes):
            assert response[:2] == data[:2] and response[2] & 0x80
            dnslib.DNSRecord.parse(response)


@given(queries(), st.integers(0, 60), st.integers(0, 255), st.booleans())
def test_damaged_queries_never_crash(data: bytes, at: int, value: int, stream: bool) -> None:
    at %= len(data)
    for damaged in (data[:at], data[:at] + bytes((value,)) + data[at + 1 :], data + data[at:]):
        answer(TABLE, damaged, 1232, lambda n: 0, stream=stream, recursion=True)


@given(queries(), st.sampled_from([512, 1232, 8192]), st.booleans(), st.booleans())
def test_responses_are_well_formed_and_keep_to_the_size(data: bytes, max_size: int, stream: bool, recursion: bool) -> None:
    query = m.parse_query(data)
    response = answer(TABLE, data, max_size, lambda n: n // 2, stream=stream, recursion=recursion)
    if isinstance(response, Forward):
        assert recursion and not query.key.endswith(b"consul")
        return
    assert response is not None
    end = m.question_end(data)
    assert response[:2] == data[:2] and response[12:end] == data[12:end], "id and question are echoed as they were spelled"
    limit = 65535 if stream else 512 if query.edns is None else max(512, min(query.edns.size, max_size))
    assert len(response) <= limit
    record = dnslib.DNSRecord.parse(response)
    assert len(record.ar) >= (query.edns is not None)
    assert (record.header.qr, record.header.rd, record.header.ra) == (1, 1, int(recursion))
    if record.header.tc == 0 and query.key == b"web.service.consul" and query.qtype == m.A:
        assert {str(rr.rdata) for rr in record.rr} == {f"192.0.2.{n}" for n in range(1, 60)}


@given(NAME)
def test_names_survive_the_wire(name: bytes) -> None:
    assert m.dotted(m.wire_name(name)) == name.lower()
