# SPDX-License-Identifier: Apache-2.0
"""The wire codec at its edges; `dnslib` is the independent reader."""

import dnslib
import pytest

from plait.dns import message as m


def ask(name: str = "web.service.consul", qtype: str = "A", **header: int) -> bytes:
    query = dnslib.DNSRecord.question(name, qtype)
    for key, value in header.items():
        setattr(query.header, key, value)
    return bytes(query.pack())


def with_opt(data: bytes, opt: bytes, count: int = 1) -> bytes:
    return data[:10] + count.to_bytes(2, "big") + data[12:] + opt


def opt(size: int = 1232, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    return (
        b"\0\0\x29" + size.to_bytes(2, "big") + bytes((0, version)) + flags.to_bytes(2, "big") + len(options).to_bytes(2, "big") + options
    )


def test_a_query_is_read_with_the_clients_spelling_beside_the_key() -> None:
    query = m.parse_query(ask("WeB.Service.consul", "SRV", id=77))
    assert (query.id, query.key, query.qtype, query.qclass) == (77, b"web.service.consul", m.SRV, m.IN)
    assert query.wire == b"\3WeB\7Service\6consul\0" and query.recursion_desired and query.edns is None


def test_edns_and_client_subnet_are_read() -> None:
    subnet = b"\0\1\x18\0\xc0\0\2"
    query = m.parse_query(with_opt(ask(), opt(4096, 0, 0x8000, b"\0\x0a\0\2ab\0\x08\0\7" + subnet)))
    assert query.edns is not None
    assert (query.edns.size, query.edns.flags, query.edns.ecs) == (4096, 0x8000, subnet)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ask()[:11],
        ask()[:-1],
        ask()[:12],
        ask() + b"x",
        ask(qr=1),
        ask()[:4] + b"\0\2" + ask()[6:],
        ask()[:4] + b"\0\0" + ask()[6:12],
        ask()[:12] + b"\xc0\x0c\0\1\0\1",
        ask()[:12] + b"\x40a\0\0\1\0\1",
        ask()[:12] + b"\3abc" * 64 + b"\0\0\1\0\1",
        with_opt(ask(), b""),
        with_opt(ask(), opt()[:-1]),
        with_opt(ask(), opt() + opt(), 2),
        with_opt(ask(), b"\1a" + opt()),
        with_opt(ask(), opt(options=b"\0")),
        with_opt(ask(), opt(options=b"\0\x08\0\2ab")),
        with_opt(ask(), opt(options=b"\0\x08\0\x09ab")),
    ],
)
def test_junk_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(m.Malformed) as caught:
        m.parse_query(data)
    assert caught.value.header == (len(data) >= 12 and not data[2] & 0x80)


@pytest.mark.parametrize("name", [b"a" * 64, b"a..b", b".", b"a.", b".".join([b"a" * 63] * 4)])
def test_names_that_cannot_be_written_are_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match=r"label|255"):
        m.wire_name(name)


def test_longest_name_is_written() -> None:
    assert len(m.wire_name(b".".join([b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61]))) == 255


def test_names_are_compressed_except_the_target_of_srv() -> None:
    query = m.parse_query(ask("web.service.consul", "SRV"))
    target = m.wire_name(b"b.node.consul")
    answers = [((query.wire, m.SRV, 0, b"\0\1\0\1\0\x50" + target), [(target, m.A, 0, b"\x0a\x1c\0\2")])]
    response = m.respond(query, 0, m.NOERROR, 512, answers, [(m.wire_name(b"consul"), m.NS, 0, target)])
    assert response.count(b"\6consul") == 2, "once in the question, once in the target of SRV"
    record = dnslib.DNSRecord.parse(response)
    assert str(record.rr[0].rdata) == "1 1 80 b.node.consul."
    assert str(record.auth[0].rdata) == "b.node.consul." and str(record.auth[0].rname) == "consul."
    assert str(record.ar[0].rname) == "b.node.consul."


def test_what_does_not_fit_is_cut_with_tc_and_pairs_stay_together() -> None:
    query = m.parse_query(ask("web.service.consul", "SRV"))
    targets = [m.wire_name(f"{n:08x}.addr.dc1.consul".encode()) for n in range(50)]
    answers = [((query.wire, m.SRV, 0, b"\0\1\0\1\0\x50" + target), [(target, m.A, 0, bytes(4))]) for target in targets]
    for limit in (512, 513, 1232, 2900):
        response = m.respond(query, 0, m.NOERROR, limit, answers)
        record = dnslib.DNSRecord.parse(response)
        assert limit - 80 < len(response) <= limit and record.header.tc == 1
        assert {str(rr.rdata).split()[-1] for rr in record.rr} == {str(rr.rname) for rr in record.ar}
    whole = dnslib.DNSRecord.parse(m.respond(query, 0, m.NOERROR, 65535, answers))
    assert len(whole.rr) == len(whole.ar) == 50 and whole.header.tc == 0


def test_opt_says_what_we_take_and_echoes_the_subnet_with_scope_zero() -> None:
    query = m.parse_query(with_opt(ask(), opt(300, 0, 0x8000, b"\0\x08\0\7\0\1\x18\x09\xc0\0\2")))
    response = m.respond(query, 0, m.BADVERS, 512)
    assert response.endswith(b"\0\0\x29\x04\xd0\1\0\x80\0\0\x0b\0\x08\0\7\0\1\x18\0\xc0\0\2")
    assert response[3] & 0xF == 0, "the upper bits of BADVERS are in OPT"
