# SPDX-License-Identifier: Apache-2.0
"""Messages of DHCP for IPv4 <-> bytes: BOOTP's fixed part and the options behind it.

Sources: RFC 2131, section 2; RFC 2132; RFC 3396 (options that come in several parts); RFC 3442 (option 121). What is malformed raises
`DhcpError`; an option whose value is not what it should be reads as if it were not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network

CLIENT_PORT, SERVER_PORT = 68, 67
NOWHERE = IPv4Address(0)
_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_COOKIE = b"\x63\x82\x53\x63"
_ETHERNET, _BROADCAST = 1, 0x8000
_LEAST = 300
"""Bytes of the shortest message: BOOTP's, which some relays insist on (RFC 1542, section 2.1)."""
_FILE, _SNAME = 1, 2
"""Bits of the option `OVERLOAD`: which of the two fields holds options (RFC 2132, section 9.3)."""
LARGEST_LABEL, LARGEST_NAME = 63, 253


class DhcpError(ValueError):
    """These bytes are no message of DHCP."""


class Kind(IntEnum):
    """RFC 2132, section 9.6."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7


_KINDS = frozenset(map(int, Kind))


class Option(IntEnum):
    PAD = 0
    MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN = 15
    MTU = 26
    BROADCAST = 28
    ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    KIND = 53
    SERVER = 54
    PARAMETERS = 55
    LARGEST_MESSAGE = 57
    T1 = 58
    T2 = 59
    CLIENT = 61
    ROUTES = 121
    END = 255


ASKED = bytes(
    (
        Option.ROUTES,  # before the routers, whose place it takes (RFC 3442)
        Option.MASK,
        Option.ROUTER,
        Option.DNS,
        Option.DOMAIN,
        Option.MTU,
        Option.BROADCAST,
        Option.LEASE_TIME,
        Option.T1,
        Option.T2,
    )
)
"""What a client wants to be told: the value of `PARAMETERS`."""


@dataclass(frozen=True, slots=True)
class Message:
    """`mac` is the client's, whoever sends. `reply`: it is a server's. `broadcast`: the client cannot be told by unicast yet."""

    kind: Kind
    xid: int
    mac: bytes
    options: Mapping[int, bytes] = field(default_factory=dict)
    reply: bool = False
    secs: int = 0
    broadcast: bool = False
    ciaddr: IPv4Address = NOWHERE
    yiaddr: IPv4Address = NOWHERE
    giaddr: IPv4Address = NOWHERE

    def addresses(self, option: Option) -> tuple[IPv4Address, ...]:
        """Those of a list of addresses; () if there is none."""
        value = self.options.get(option, b"")
        if not value or len(value) % 4:
            return ()
        return tuple(IPv4Address(value[at : at + 4]) for at in range(0, len(value), 4))

    def address(self, option: Option) -> IPv4Address | None:
        return next(iter(self.addresses(option)), None)

    def number(self, option: Option, size: int = 4) -> int | None:
        """An unsigned number of `size` bytes."""
        value = self.options.get(option, b"")
        return int.from_bytes(value, "big") if len(value) == size else None

    def text(self, option: Option) -> str:
        """A name as DNS knows it, "" if there is none or it is no name: it goes into files that programs read."""
        value = self.options.get(option, b"").rstrip(b"\0")
        name = value.decode("ascii", "replace").rstrip(".")
        labels = name.split(".")
        fits = len(name) <= LARGEST_NAME and all(0 < len(label) <= LARGEST_LABEL for label in labels)
        return name if fits and all(c.isascii() and (c.isalnum() or c in "-_") for label in labels for c in label) else ""

    @property
    def prefix(self) -> int | None:
        """Length of the prefix that the option `MASK` says."""
        mask = self.number(Option.MASK)
        if mask is None:
            return None
        length = mask.bit_count()
        return length if mask == (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF else None

    @property
    def routes(self) -> tuple[tuple[IPv4Network, IPv4Address | None], ...] | None:
        """(destination, next hop; None: on the link) of the option `ROUTES`; None if there is none, or a malformed one."""
        value = self.options.get(Option.ROUTES)
        return _routes(value) if value else None


def _routes(value: bytes) -> tuple[tuple[IPv4Network, IPv4Address | None], ...] | None:
    found: list[tuple[IPv4Network, IPv4Address | None]] = []
    at = 0
    while at < len(value):
        length = value[at]
        size = (length + 7) // 8
        part, hop = value[at + 1 : at + 1 + size], value[at + 1 + size : at + 5 + size]
        if length > 32 or len(hop) != 4:
            return None
        to = IPv4Network((part.ljust(4, b"\0"), length), strict=False)
        found.append((to, IPv4Address(hop) if any(hop) else None))
        at += 5 + size
    return tuple(found)


def encode_routes(routes: tuple[tuple[IPv4Network, IPv4Address | None], ...]) -> bytes:
    """The value of the option `ROUTES`."""
    parts = ((to, (hop or NOWHERE).packed) for to, hop in routes)
    return b"".join(bytes((to.prefixlen,)) + to.network_address.packed[: (to.prefixlen + 7) // 8] + hop for to, hop in parts)


def encode(message: Message) -> bytes:
    """The payload of a datagram, 300 bytes at least."""
    fixed = _FIXED.pack(
        2 if message.reply else 1,
        _ETHERNET,
        6,
        0,
        message.xid,
        min(message.secs, 0xFFFF),
        _BROADCAST if message.broadcast else 0,
        message.ciaddr.packed,
        message.yiaddr.packed,
        bytes(4),
        message.giaddr.packed,
        message.mac.ljust(16, b"\0"),
        b"",
        b"",
    )
    options = {int(Option.KIND): bytes((message.kind,))} | {code: value for code, value in message.options.items() if code != Option.KIND}
    body = b"".join(part for code, value in options.items() for part in _parts(code, value))
    return (fixed + _COOKIE + body + bytes((Option.END,))).ljust(_LEAST, b"\0")


def _parts(code: int, value: bytes) -> Iterator[bytes]:
    """An option in pieces of at most 255 bytes (RFC 3396)."""
    for at in range(0, max(len(value), 1), 255):
        piece = value[at : at + 255]
        yield bytes((code, len(piece))) + piece


def decode(payload: bytes) -> Message:
    """The message in a datagram. DhcpError."""
    start = _FIXED.size + len(_COOKIE)
    if len(payload) < start or payload[_FIXED.size : start] != _COOKIE:
        raise DhcpError(f"{len(payload)} bytes are too short, or have no cookie")
    op, hardware, length, _, xid, secs, flags, ciaddr, yiaddr, _, giaddr, chaddr, sname, file = _FIXED.unpack_from(payload)
    if op not in (1, 2) or hardware != _ETHERNET or length != 6:
        raise DhcpError(f"operation {op}, hardware {hardware} with addresses of {length} bytes")
    options: dict[int, bytes] = {}
    _read(payload[start:], options)
    overload = options.get(Option.OVERLOAD, b"\0")[:1]
    for bit, area in ((_FILE, file), (_SNAME, sname)):
        if overload and overload[0] & bit:
            _read(area, options)
    kind = options.pop(Option.KIND, b"")
    if len(kind) != 1 or kind[0] not in _KINDS:
        raise DhcpError(f"message type {kind.hex() or 'missing'}")
    where = map(IPv4Address, (ciaddr, yiaddr, giaddr))
    return Message(Kind(kind[0]), xid, chaddr[:6], options, op == 2, secs, bool(flags & _BROADCAST), *where)


def _read(area: bytes, into: dict[int, bytes]) -> None:
    """The options of one area; pieces of the same one are joined. DhcpError if one is cut off; a missing end is no harm."""
    at = 0
    while at < len(area) and area[at] != Option.END:
        code = area[at]
        if code == Option.PAD:
            at += 1
            continue
        if at + 2 > len(area) or at + 2 + area[at + 1] > len(area):
            raise DhcpError(f"option {code} is cut off")
        into[code] = into.get(code, b"") + area[at + 2 : at + 2 + area[at + 1]]
        at += 2 + area[at + 1]
