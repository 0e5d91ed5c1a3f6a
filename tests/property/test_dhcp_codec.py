# SPDX-License-Identifier: Apache-2.0
"""The codec of DHCP: what is encoded is decoded, and no bytes whatever, in a frame or outside, raise anything but `DhcpError`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from plait.dhcp.client import Client, Lease, State, Who, begin, heard
from plait.dhcp.dialect4 import Dialect4
from plait.dhcp.dialect6 import Dialect6
from plait.dhcp.frames import checksum, claim, datagram, datagram6, here, payload6_of, payload_of, sought
from plait.dhcp.message import CLIENT_PORT, DhcpError, Kind, Message, Option, decode, encode, encode_routes
from plait.dhcp.message6 import Kind6, Message6, decode6, encode6
from plait.model.addr import link_local
from plait.model.leases import Leased

addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
options = st.dictionaries(
    st.integers(1, 254).filter(lambda c: c not in (Option.KIND, Option.OVERLOAD)), st.binary(max_size=600), max_size=8
)
messages = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    xid=st.integers(0, 2**32 - 1),
    mac=st.binary(min_size=6, max_size=6),
    options=options,
    reply=st.booleans(),
    secs=st.integers(0, 65535),
    broadcast=st.booleans(),
    ciaddr=addresses,
    yiaddr=addresses,
    giaddr=addresses,
)
WHO = Who(b"\x02\0\0\0\0\1", b"\xffid", Dialect4())
ANYWHERE = IPv4Address("192.0.2.1")
LEASE = Lease(IPv4Address("192.0.2.7"), IPv4Address("192.0.2.1"), "02:00:00:00:00:fe", 0.0, 100, 50.0, 87.5, Leased(24))


def told(message: Message) -> None:
    """Whatever a message says, a client in whatever state takes a step."""
    for state in State:
        holds = state is not State.SELECTING and state is not State.REQUESTING
        client = Client(WHO, state, message.xid, 0.0, 1.0, lease=LEASE if holds else None)
        step = heard(
            client,
            Message(message.kind, message.xid, WHO.mac, message.options, True, yiaddr=message.yiaddr),
            "",
            ANYWHERE,
            1.0,
            lambda: 0.5,
        )
        assert step.client.lease is None or step.client.lease.seconds > 0


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=700), st.booleans())
def test_no_bytes_break_it(raw: bytes, behind_a_good_head: bool) -> None:
    good = encode(Message(Kind.ACK, 1, WHO.mac, {}, True))[:240]
    with contextlib.suppress(DhcpError):
        told(decode(good + raw if behind_a_good_head else raw))


@given(messages)
def test_no_values_break_a_client(message: Message) -> None:
    told(message)


@given(messages, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_no_damage_breaks_it(message: Message, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(encode(message))
    for at, value in flips:
        raw[at % len(raw)] = value
    with contextlib.suppress(DhcpError):
        told(decode(bytes(raw)))


@given(st.lists(st.tuples(addresses, st.integers(0, 32), addresses), max_size=20))
def test_routes_are_read_as_they_were_written(rows: list[tuple[IPv4Address, int, IPv4Address]]) -> None:
    wanted = tuple((IPv4Network((to, length), strict=False), hop if int(hop) else None) for to, length, hop in rows)
    message = Message(Kind.ACK, 1, WHO.mac, {Option.ROUTES: encode_routes(wanted)})
    assert message.routes == (wanted or None)


@given(st.binary(max_size=400), addresses, addresses)
def test_a_datagram_comes_out_of_its_frame_and_only_whole(payload: bytes, source: IPv4Address, to: IPv4Address) -> None:
    frame = datagram(payload, ("02:00:00:00:00:01", source), ("02:00:00:00:00:02", to), (67, CLIENT_PORT))
    assert payload_of(frame + b"\0" * 10) == ("02:00:00:00:00:01", source, payload)
    for at in range(14, len(frame)):
        assert payload_of(frame[:at]) is None
    for at in (30, 35, 41):  # the address, the port and the checksum of the datagram
        damaged = frame[:at] + bytes((frame[at] ^ 1,)) + frame[at + 1 :]
        assert payload_of(damaged) is None and payload_of(damaged, summed=False) == (None if at == 30 else payload_of(frame))


@given(st.binary(max_size=200))
def test_no_frame_breaks_it(raw: bytes) -> None:
    for frame in (raw, b"\xff" * 12 + b"\x08\x00" + raw, b"\xff" * 12 + b"\x08\x00\x45" + raw, b"\xff" * 12 + b"\x08\x06" + raw):
        payload_of(frame)
        claim(frame)


duids = st.binary(min_size=1, max_size=130)
messages6 = st.builds(
    Message6,
    kind=st.sampled_from(Kind6),
    xid=st.integers(0, 2**24 - 1),
    client=duids,
    server=duids,
    iaid=st.just(1),
    address=st.integers(0, 2**128 - 1).map(IPv6Address),
    valid=st.integers(0, 2**32 - 1),
    t1=st.integers(0, 2**32 - 1),
    t2=st.integers(0, 2**32 - 1),
    status=st.integers(0, 6),
    elapsed=st.none() | st.integers(0, 65535),
)
WHO6 = Who(b"\x02\0\0\0\0\1", b"\xff\0\0\0\1duid", Dialect6())


def told6(message: Message6) -> None:
    for state in State:
        lease = LEASE if state not in (State.SELECTING, State.REQUESTING) else None
        client = Client(WHO6, state, message.xid, 0.0, 1.0, lease=lease)
        step = heard(client, replace(message, client=b"duid"), "", IPv6Address("fe80::1"), 1.0, lambda: 0.5)
        assert step.client.lease is None or step.client.lease.seconds > 0


@given(messages6)
def test_what_is_encoded_of_ipv6_is_decoded(message: Message6) -> None:
    assert decode6(encode6(message)) == message
    told6(message)


@given(messages6, st.binary(max_size=80), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_no_damage_breaks_ipv6(message: Message6, more: bytes, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(encode6(message) + more)
    for at, value in flips:
        raw[at % len(raw)] = value
    with contextlib.suppress(DhcpError):
        told6(decode6(bytes(raw)))
    with contextlib.suppress(DhcpError):
        decode6(more)


@given(st.binary(max_size=300))
def test_a_datagram_of_ipv6_comes_out_of_its_frame_and_only_whole(payload: bytes) -> None:
    mac = "02:00:00:00:00:01"
    sent = datagram6(payload, mac)
    frame = sent[:54] + sent[56:58] + sent[54:56] + sent[58:]  # what a server sends back; the sum is that of the ports either way
    assert payload6_of(sent) is None and payload6_of(frame + b"\0" * 9) == (mac, link_local(mac), payload)
    for at in range(14, len(frame)):
        assert payload6_of(frame[:at]) is None
    damaged = frame[:30] + bytes((frame[30] ^ 1,)) + frame[31:]
    assert payload6_of(damaged) is None and payload6_of(damaged, summed=False) is not None
    for raw in (payload, frame[:14] + payload, frame[:54] + payload):
        payload6_of(raw)
        sought(raw)


def test_who_asks_for_a_neighbour_is_told() -> None:
    mac, own, asker = "02:00:00:00:00:01", link_local("02:00:00:00:00:01"), ("02:00:00:00:00:fe", IPv6Address("fe80::fe"))
    told = here(mac, own, asker)
    assert told[:14].hex() == "0200000000fe" + "020000000001" + "86dd" and told[54] == 136 and IPv6Address(told[62:78]) == own
    asked = told[:54] + b"\x87" + told[55:]
    assert sought(asked) == (mac, own, own) and sought(told) is None
    assert checksum(told[22:54] + (len(told) - 54).to_bytes(4, "big") + b"\0\0\0\x3a" + told[54:]) == 0


def test_the_first_message_is_as_rfc_2131_has_it() -> None:
    (said,) = begin(
        Who(bytes.fromhex("020000000001"), b"\xffid", Dialect4(), "web"), 0.0, lambda: 0.5, wanted=IPv4Address("192.0.2.7")
    ).sends
    raw = encode(said.message)
    assert raw[:4] == b"\1\1\6\0" and raw[4:8] == b"\x80\0\0\0" and raw[10:12] == b"\x80\0" and raw[12:28] == bytes(16)
    assert raw[28:44] == bytes.fromhex("020000000001") + bytes(10) and raw[236:243] == b"\x63\x82\x53\x63\x35\1\1"
    assert b"\x32\4\xc0\0\2\7" in raw and b"\x0c\3web" in raw and b"\x3d\3\xffid" in raw and len(raw) >= 300
