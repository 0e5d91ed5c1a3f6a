# SPDX-License-Identifier: Apache-2.0
"""The echo itself on loopback: its requests, its replies, and routers' words about length (those of real routers: tests/kernel)."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from plait.agent.echo import _V4, _V6, LOST, SHORTEST, Echo, Lane, _Icmp, _nonce_of, _read, _request, _told

NONCE = bytes(range(16))


@pytest.fixture
async def echo() -> Echo:
    if os.geteuid() != 0:
        pytest.skip("raw sockets need root")
    return Echo()


@pytest.mark.parametrize("size", [SHORTEST, 1500, 9001, 65535])
async def test_the_kernel_answers(echo: Echo, size: int) -> None:
    for _ in range(3):
        for loopback in (IPv4Address("127.0.0.1"), IPv6Address("::1")):
            assert 0 < ((await echo.ask(loopback, size)).rtt_s or 0) < 1


async def test_what_cannot_be_sent_is_lost(echo: Echo) -> None:
    assert await echo.ask(IPv4Address("255.255.255.255")) == LOST
    assert await echo.ask(IPv4Address("127.0.0.1"), 65536) == LOST, "no IP packet is that long"
    assert await echo.ask(IPv6Address("::1"), 65536 + 40) == LOST, "nor one of IPv6, whose head is not counted"


async def test_what_cannot_be_sent_by_a_lane_takes_its_time_too(echo: Echo) -> None:
    """Several in a row are the verdict that a tunnel is broken: in the moment in which its device is mended they must not all fail."""
    loop, nobody = asyncio.get_running_loop(), IPv4Address("255.255.255.255")
    began = loop.time()
    assert await echo.ask_by(Lane(IPv4Address("127.0.0.1")), nobody, 0.2) is None
    assert loop.time() - began >= 0.19


@pytest.mark.parametrize("size", [SHORTEST, SHORTEST + 1, 1500])
def test_a_reply_is_told_by_its_nonce_whatever_its_head(size: int) -> None:
    request = _request(_V4, NONCE, size)
    assert len(request) == size - 20
    even = request + bytes(size % 2)
    assert sum(struct.unpack(f"!{len(even) // 2}H", even)) % 0xFFFF == 0, "RFC 1071: it sums up to all ones"
    for options in (0, 4, 40):
        head = bytes([0x40 | (5 + options // 4)]) + bytes(19 + options)
        assert _nonce_of(_V4, head + request) == NONCE
    for cut in (b"", b"\x45", bytes(27)):
        assert _nonce_of(_V4, cut) != NONCE
    longer = _request(_V6, NONCE, size)
    assert len(longer) == max(size, 64) - 40, "its shortest has a longer head"
    assert _nonce_of(_V6, longer) == NONCE and _nonce_of(_V6, b"") != NONCE


async def test_a_reply_with_another_nonce_is_not_the_one_that_is_waited_for() -> None:
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(2))
    outcome: asyncio.Future[float | int] = asyncio.get_running_loop().create_future()
    head, nonce = b"\x45" + bytes(19), bytes(16)
    with ours, theirs:
        ours.bind(("127.0.0.1", 0))
        theirs.connect(ours.getsockname())
        for other in (b"\1" * 16, nonce[:-1], nonce[:-1] + b"x", b""):
            theirs.send(head + _request(_V4, nonce, SHORTEST)[:8] + other)
            _read(ours, _V4, nonce, outcome)
            assert not outcome.done()
        _read(ours, _V4, nonce, outcome)  # nothing has come
        theirs.send(head + _request(_V4, nonce, SHORTEST))
        _read(ours, _V4, nonce, outcome)
        assert outcome.done()


def error(icmp: _Icmp = _V4, info: int = 1400, **other: int) -> list[tuple[int, int, bytes]]:
    """That a packet was too long for a router, but for what is `other`."""
    origin, icmp_type, code = icmp.too_long
    fields = {"origin": origin, "icmp_type": icmp_type, "code": code} | other
    return [(icmp.options[0], icmp.options[2], struct.pack("=IBBBBII", 90, *fields.values(), 0, info, 0))]


@pytest.mark.parametrize("icmp", [_V4, _V6], ids=["v4", "v6"])
def test_only_a_packet_that_was_too_long_tells_a_length(icmp: _Icmp) -> None:
    assert _told(icmp, error(icmp)) == 1400
    others = [error(icmp, origin=1), error(icmp, icmp_type=11), error(icmp, code=1), error(icmp, info=0)]
    for other in (*others, error(_V6 if icmp is _V4 else _V4), [], [(0, 8, b"")], [(*icmp.options[::2], b"short")]):
        assert _told(icmp, other) == 0


class Told:
    """A socket with one router's word waiting, about a packet that began with `quoted`."""

    def __init__(self, quoted: bytes) -> None:
        self.quoted = quoted

    def recvmsg(self, size: int, ancillary: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        return self.quoted[:size], error(), flags, None

    def recv(self, size: int) -> bytes:
        raise OSError(90, "Message too long")


async def test_a_word_about_a_packet_of_somebody_else_counts_for_nothing() -> None:
    """A raw socket hears all that routers say of its peer: of other requests, and what anybody on the way may invent."""
    outcome: asyncio.Future[float | int] = asyncio.get_running_loop().create_future()
    other = _request(_V4, bytes(16), 1500)
    for quoted in (other, other[:6], b""):
        _read(Told(quoted), _V4, NONCE, outcome)  # type: ignore[arg-type]
        assert not outcome.done()
    _read(Told(_request(_V4, NONCE, 1500)), _V4, NONCE, outcome)  # type: ignore[arg-type]
    assert outcome.result() == 1400
