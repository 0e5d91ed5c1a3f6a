# SPDX-License-Identifier: Apache-2.0
"""The codec beside dnslib, in both directions: what one writes, the other reads alike."""

import dnslib
from hypothesis import given
from hypothesis import strategies as st

from plait.dns import message as m

LABEL = st.text("abcXYZ019-_", min_size=1, max_size=20).map(str.encode)
NAME = st.lists(LABEL, min_size=1, max_size=5).map(b".".join)
ADDRESS = st.binary(min_size=4, max_size=4)


@st.composite
def owned(draw: st.DrawFn) -> m.Owned:
    """A record that dnslib knows too; few names, so that they share endings."""
    owner, target, ttl = m.wire_name(draw(NAME)), m.wire_name(draw(NAME)), draw(st.integers(0, 2**31 - 1))
    rtype = draw(st.sampled_from([m.A, m.AAAA, m.CNAME, m.NS, m.PTR, m.SRV, m.SOA, m.TXT]))
    text = draw(st.binary(max_size=40))
    rdata = {
        m.A: draw(ADDRESS),
        m.AAAA: draw(st.binary(min_size=16, max_size=16)),
        m.SRV: draw(st.binary(min_size=6, max_size=6)) + target,
        m.SOA: target + owner + draw(st.binary(min_size=20, max_size=20)),
        m.TXT: bytes((len(text),)) + text,
    }.get(rtype, target)
    return owner, rtype, ttl, rdata


def uncompressed(rr: dnslib.RR) -> m.Owned:
    """What dnslib read, in our shape: its data written anew without compression."""
    name, buffer = dnslib.DNSBuffer(), dnslib.DNSBuffer()
    name.encode_name_nocompress(rr.rname)
    buffer.names, buffer.encode_name = {}, buffer.encode_name_nocompress
    rr.rdata.pack(buffer)
    return bytes(name.data), rr.rtype, rr.ttl, bytes(buffer.data)


@given(NAME, st.lists(owned(), max_size=30), st.lists(owned(), max_size=5), st.lists(owned(), max_size=5))
def test_dnslib_reads_what_we_write(name: bytes, answers: list[m.Owned], authority: list[m.Owned], additional: list[m.Owned]) -> None:
    query = m.parse_query(bytes(dnslib.DNSRecord.question(name.decode()).pack()))
    response = m.respond(query, m.AA, m.NOERROR, m.STREAM_SIZE, [(record, ()) for record in answers], authority, additional)
    record = dnslib.DNSRecord.parse(response)
    for read, wrote in ((record.rr, answers), (record.auth, authority), (record.ar, additional)):
        for got, want in zip(map(uncompressed, read), wrote, strict=True):
            assert (got[0].lower(), got[3].lower()) == (want[0].lower(), want[3].lower()), "compression may take another's spelling"
            assert got[1:3] == want[1:3]


@given(st.lists(owned(), max_size=20), st.lists(st.tuples(owned(), st.lists(owned(), max_size=3)), max_size=20), st.integers(512, 3000))
def test_what_is_cut_is_the_front_of_the_whole_with_its_own_additions(authority: list[m.Owned], groups: list[m.Group], limit: int) -> None:
    query = m.parse_query(bytes(dnslib.DNSRecord.question("a").pack()))
    response = m.respond(query, 0, m.NOERROR, limit, groups, authority)
    record = dnslib.DNSRecord.parse(response)
    kept = groups[: len(record.rr)]
    assert len(response) <= limit
    assert len(record.ar) == len(dict.fromkeys(extra for _, more in kept for extra in more))
    assert len(record.auth) in (0, len(authority))
    assert record.header.tc == (len(kept) < len(groups) or len(record.auth) < len(authority))


@given(st.lists(owned(), max_size=20), NAME)
def test_we_read_what_dnslib_writes(records: list[m.Owned], name: bytes) -> None:
    wanted = [record for record in records if record[1] in (m.A, m.AAAA, m.CNAME)]
    reply = dnslib.DNSRecord.question(name.decode()).reply()
    plain = m.respond(m.parse_query(bytes(dnslib.DNSRecord.question("x").pack())), 0, 0, m.STREAM_SIZE, [(r, ()) for r in records])
    for rr in dnslib.DNSRecord.parse(plain).rr:
        reply.add_answer(rr)
    read = m.read_addresses(bytes(reply.pack()))
    assert [(o.lower(), t, ttl) for o, t, ttl, _ in read] == [(o.lower(), t, ttl) for o, t, ttl, _ in wanted]
    assert [d.lower() if t == m.CNAME else d for _, t, _, d in read] == [d.lower() if t == m.CNAME else d for _, t, _, d in wanted]


@given(NAME, st.sampled_from([m.A, m.SRV, m.TXT]), st.none() | st.integers(0, 65535), st.booleans())
def test_we_read_the_queries_of_dnslib_and_it_ours(name: bytes, qtype: int, size: int | None, do: bool) -> None:
    asked = dnslib.DNSRecord.question(name.decode(), dnslib.QTYPE[qtype])
    if size is not None:
        asked.add_ar(dnslib.EDNS0(flags="do" if do else "", udp_len=size))
    query = m.parse_query(bytes(asked.pack()))
    assert (query.id, query.key, query.qtype, query.wire) == (asked.header.id, name.lower(), qtype, m.wire_name(name))
    assert (None if query.edns is None else (query.edns.size, bool(query.edns.flags & 0x8000))) == (None if size is None else (size, do))
    ours = dnslib.DNSRecord.parse(m.question(query.wire, qtype))
    assert (str(ours.q.qname).encode(), ours.q.qtype, ours.header.rd) == (name + b".", qtype, 1)
    assert [rr.edns_len for rr in ours.ar] == [m.ADVERTISED_SIZE]


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 40))
def test_junk_of_a_resolver_is_a_typed_error_at_worst(junk: bytes, questions: int, answers: int) -> None:
    for data in (junk, bytes(2) + b"\x81\x80" + bytes((0, questions, 0, answers, 0, 0, 0, 0)) + junk):
        try:
            found = m.read_addresses(data)
        except m.Malformed:
            continue
        for owner, rtype, _, rdata in found:
            m.dotted(owner)
            assert len(owner) <= m.NAME_SIZE and len(rdata) == {m.A: 4, m.AAAA: 16}.get(rtype, len(rdata))
