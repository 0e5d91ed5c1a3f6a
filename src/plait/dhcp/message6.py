# SPDX-License-Identifier: Apache-2.0
"""Messages of DHCP for IPv6 <-> bytes, as far as one client needs them that wants one address.

Source: RFC 8415, sections 8 and 21. What is malformed raises `DhcpError`; options that mean nothing here are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from plait.dhcp.message import DhcpError

CLIENT_PORT6, SERVER_PORT6 = 546, 547
SERVERS, SERVERS_MAC = IPv6Address("ff02::1:2"), "33:33:00:01:00:02"
"""All servers and relays of a link, and the MAC that goes with that address (RFC 2464, section 7)."""
_OPTION = struct.Struct("!HH")
_IA, _IA_ADDRESS = struct.Struct("!III"), struct.Struct("!16sII")


class Kind6(IntEnum):
    """RFC 8415, section 7.3."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9


_KINDS = frozenset(map(int, Kind6))


class Option6(IntEnum):
    CLIENT = 1
    SERVER = 2
    IA_NA = 3
    ADDRESS = 5
    ELAPSED = 8
    STATUS = 13


@dataclass(frozen=True, slots=True)
class Message6:
    """`client` and `server` are DUIDs, b"" for none. `iaid` None: nothing is said of an address; else `address`, for `valid` seconds, what
    `t1` and `t2` are about. `status` is the first that is no success (RFC 8415, section 21.13), 0 otherwise. `elapsed` in hundredths of a
    second, None if it is not said."""

    kind: Kind6
    xid: int
    client: bytes = b""
    server: bytes = b""
    iaid: int | None = None
    address: IPv6Address | None = None
    valid: int = 0
    t1: int = 0
    t2: int = 0
    status: int = 0
    elapsed: int | None = None


def encode6(message: Message6) -> bytes:
    """The payload of a datagram."""
    parts = [bytes((message.kind,)) + message.xid.to_bytes(3, "big")]
    parts += [_option(Option6.CLIENT, message.client)] if message.client else []
    parts += [_option(Option6.SERVER, message.server)] if message.server else []
    if message.elapsed is not None:
        parts.append(_option(Option6.ELAPSED, min(message.elapsed, 0xFFFF).to_bytes(2, "big")))
    if message.iaid is not None:
        inner = (
            b""
            if message.address is None
            else _option(Option6.ADDRESS, _IA_ADDRESS.pack(message.address.packed, message.valid, message.valid))
        )
        parts.append(_option(Option6.IA_NA, _IA.pack(message.iaid, message.t1, message.t2) + inner))
    parts += [_option(Option6.STATUS, message.status.to_bytes(2, "big"))] if message.status else []
    return b"".join(parts)


def _option(code: Option6, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value


def decode6(payload: bytes) -> Message6:
    """The message in a datagram. DhcpError."""
    if len(payload) < 4 or payload[0] not in _KINDS:
        raise DhcpError(f"{len(payload)} bytes are no message of a kind that is known")
    found: dict[int, bytes] = dict(reversed(list(_options(payload[4:]))))  # of several the first counts
    iaid, address, valid, t1, t2, status = None, None, 0, 0, 0, _status(found)
    if (ia := found.get(Option6.IA_NA)) is not None:
        if len(ia) < _IA.size:
            raise DhcpError("an association of addresses is cut off")
        iaid, t1, t2 = _IA.unpack_from(ia)
        inner = dict(reversed(list(_options(ia[_IA.size :]))))
        status = status or _status(inner)
        if (one := inner.get(Option6.ADDRESS)) is not None:
            if len(one) < _IA_ADDRESS.size:
                raise DhcpError("an address is cut off")
            raw, _, valid = _IA_ADDRESS.unpack_from(one)
            address = IPv6Address(raw)
            status = status or _status(dict(_options(one[_IA_ADDRESS.size :])))
    elapsed = found.get(Option6.ELAPSED, b"")
    return Message6(
        kind=Kind6(payload[0]),
        xid=int.from_bytes(payload[1:4], "big"),
        client=found.get(Option6.CLIENT, b""),
        server=found.get(Option6.SERVER, b""),
        iaid=iaid,
        address=address,
        valid=valid,
        t1=t1,
        t2=t2,
        status=status,
        elapsed=int.from_bytes(elapsed, "big") if len(elapsed) == 2 else None,
    )


def _options(area: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(area):
        if at + 4 > len(area):
            raise DhcpError("an option is cut off")
        code, length = _OPTION.unpack_from(area, at)
        if at + 4 + length > len(area):
            raise DhcpError(f"option {code} is cut off")
        yield code, area[at + 4 : at + 4 + length]
        at += 4 + length


def _status(options: dict[int, bytes]) -> int:
    value = options.get(Option6.STATUS, b"")
    return int.from_bytes(value[:2], "big") if len(value) >= 2 else 0
