# SPDX-License-Identifier: Apache-2.0
"""DNS wire format: bytes of a query -> `Query`; `Query` and records -> bytes of a response (RFC 1035, 2181, 6891, 7871).

A name is held in one of two shapes: *wire* (length-prefixed labels ending in a zero byte, the client's spelling) and
*dotted* (lower-case labels joined by dots, no final dot, b"" for the root), the key of every table.

The DNS child imports this module and must stay small, so the classes here are plain ones with slots: `dataclasses` and
`typing` would cost it 2.5 MB. Nothing changes a value after it was made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from plait.model.errors import PlaitError

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV, OPT, DS, DNSKEY, IXFR, AXFR, ANY = 1, 2, 5, 6, 12, 16, 28, 33, 41, 43, 48, 251, 252, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
QR, AA, TC, RD, RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
OPCODE = 0x7800
HEADER = 12
NAME_SIZE = 255
"""Most bytes of a name in wire shape."""
PLAIN_SIZE = 512
"""Most bytes of a UDP message for a client without EDNS (RFC 1035 section 4.2.1)."""
ADVERTISED_SIZE = 1232
"""Bytes of a UDP message that is never fragmented on the way to us, whatever the link (DNS flag day 2020): said in each OPT of ours."""
STREAM_SIZE = 65535
"""Most bytes of a message over TCP, whose length prefix has 16 bits."""

_ECS = 8
_FAMILIES = {b"\0\1": 4, b"\0\2": 16}
"""Address family numbers (IANA), with the bytes of an address."""
_ECS_SIZE = 20  # family, two prefix lengths, an IPv6 address
_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!2H")
_FIXED = struct.Struct("!2HIH")
_MAX_POINTER = 0x3FFF
_ADDRESS_SIZE = {A: 4, AAAA: 16}
_NAME_OFFSET = {NS: 0, CNAME: 0, PTR: 0, SOA: 0, SRV: 6}

Record = tuple[int, bytes]
"""Type and data; names inside the data are in wire shape, uncompressed."""
Owned = tuple[bytes, int, int, bytes]
"""Owner name in wire shape, type, TTL in seconds, data."""
Group = tuple[Owned, Sequence[Owned]]
"""An answer and the additional records that make sense only with it."""


class Malformed(PlaitError):
    """The bytes are no DNS query. `header` tells whether an error response can be addressed (id known, not itself a response)."""

    def __init__(self, why: str, *, header: bool = True) -> None:
        super().__init__(f"reading a DNS query: {why}; the client must send a well-formed one")
        self.header = header


class Edns:
    """The OPT record of a query: `size` bytes the client takes over UDP, `version`, `flags` (DO is 0x8000), `ecs` the client
    subnet option's data or b"". `scope`: how many bits of that subnet the answer hangs on."""

    __slots__ = ("ecs", "flags", "scope", "size", "version")

    def __init__(self, size: int, version: int, flags: int, ecs: bytes) -> None:
        self.size, self.version, self.flags, self.ecs, self.scope = size, version, flags, ecs, 0

    @property
    def subnet(self) -> tuple[bytes, int] | None:
        """The client's subnet: packed address and length of the prefix (1 or more). None if it is not told or cannot be."""
        if not self.ecs or self.ecs[:2] not in _FAMILIES:
            return None
        size, prefix = _FAMILIES[self.ecs[:2]], self.ecs[2]
        return (self.ecs[4:].ljust(size, b"\0"), prefix) if 0 < prefix <= 8 * size and len(self.ecs) <= 4 + size else None


class Query:
    """One question: `wire` the name as the client spelled it, `key` the same dotted. `flags` as in the header."""

    __slots__ = ("edns", "flags", "id", "key", "qclass", "qtype", "wire")

    def __init__(self, ident: int, flags: int, wire: bytes, qtype: int, qclass: int, edns: Edns | None) -> None:
        self.id, self.flags, self.wire, self.qtype, self.qclass, self.edns = ident, flags, wire, qtype, qclass, edns
        self.key = dotted(wire)

    @property
    def recursion_desired(self) -> bool:
        return bool(self.flags & RD)


def dotted(wire: bytes) -> bytes:
    """The dotted shape of a wire name. A dot inside a label is not escaped: no name of ours has one."""
    labels, at = [], 0
    while wire[at]:
        labels.append(wire[at + 1 : at + 1 + wire[at]])
        at += 1 + wire[at]
    return b".".join(labels).lower()


def wire_name(name: bytes) -> bytes:
    """The wire shape of a dotted name. Raises ValueError if a label is empty or over 63 bytes, or the whole over 255."""
    labels = name.split(b".") if name else []
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} has an empty label or one over 63 bytes")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(wire) > 255:
        raise ValueError(f"{name!r} is longer than 255 bytes")
    return wire


def question_end(data: bytes) -> int:
    """Offset behind the first question. Raises Malformed; the name must not be compressed (nothing stands before it)."""
    end = _plain_name_end(data, HEADER) + 4
    if end > len(data):
        raise Malformed("the question is cut off")
    return end


def parse_query(data: bytes) -> Query:
    """The query in `data`: exactly one question, any records behind it well-formed, at most one OPT, no trailing bytes.
    Raises Malformed. The opcode is not looked at."""
    if len(data) < HEADER:
        raise Malformed(f"{len(data)} bytes are less than a header", header=False)
    ident, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & QR:
        raise Malformed("it is a response", header=False)
    if questions != 1:
        raise Malformed(f"it holds {questions} questions instead of one")
    end = question_end(data)
    qtype, qclass = _QUESTION.unpack_from(data, end - 4)
    edns = _parse_records(data, end, answers + authority, additional) if len(data) > end or answers + authority + additional else None
    return Query(ident, flags, data[HEADER : end - 4], qtype, qclass, edns)


def question(target: bytes, qtype: int) -> bytes:
    """A query of our own for a name in wire shape: recursion desired, id 0, EDNS."""
    opt = b"\0" + _FIXED.pack(OPT, ADVERTISED_SIZE, 0, 0)
    return _HEADER.pack(0, RD, 1, 0, 0, 1) + target + _QUESTION.pack(qtype, IN) + opt


def truncated(response: bytes) -> bool:
    """Whether TC marks a response of at least a header."""
    return bool(int.from_bytes(response[2:4], "big") & TC)


def read_addresses(response: bytes) -> list[Owned]:
    """The A, AAAA and CNAME records of a response's answer section, names uncompressed. Raises Malformed."""
    if len(response) < HEADER:
        raise Malformed("a response is less than a header", header=False)
    _, _, questions, answers, _, _ = _HEADER.unpack_from(response)
    at, found = HEADER, list[Owned]()
    for _ in range(questions):
        at = _any_name_end(response, at) + 4
    for _ in range(answers):
        owner, at = _whole_name(response, at), _any_name_end(response, at)
        if at + _FIXED.size > len(response):
            raise Malformed("a record is cut off")
        rtype, rclass, ttl, length = _FIXED.unpack_from(response, at)
        at += _FIXED.size + length
        if at > len(response):
            raise Malformed("the data of a record is cut off")
        ttl = ttl if ttl < 1 << 31 else 0  # RFC 2181 section 8
        if rclass == IN and length == _ADDRESS_SIZE.get(rtype):
            found.append((owner, rtype, ttl, response[at - length : at]))
        elif rclass == IN and rtype == CNAME:
            found.append((owner, rtype, ttl, _whole_name(response, at - length)))
    return found


def _whole_name(data: bytes, at: int) -> bytes:
    """The name at `at`, its pointers followed; each must lead further to the front than the last."""
    name, bound = bytearray(), at
    while at < len(data):
        length = data[at]
        if length >= 0xC0:
            at = int.from_bytes(data[at : at + 2], "big") & _MAX_POINTER
            if at >= bound:
                break
            bound = at
            continue
        if length > 63 or len(name) + length + 1 > NAME_SIZE:
            break
        name += data[at : at + 1 + length]
        at += 1 + length
        if length == 0 and at <= len(data):
            return bytes(name)
    raise Malformed("a name is cut off, too long or points nowhere")


def _plain_name_end(data: bytes, at: int) -> int:
    """Offset behind the uncompressed name at `at`, at most 255 bytes long."""
    start, size = at, len(data)
    while at < size:
        length = data[at]
        if length == 0:
            if at + 1 - start > 255:
                break
            return at + 1
        if length > 63:
            raise Malformed("the name of the question is compressed or has a label of unknown type")
        at += 1 + length
    raise Malformed("a name is cut off or too long")


def _any_name_end(data: bytes, at: int) -> int:
    """Offset behind a possibly compressed name; where a pointer leads is nobody's concern here."""
    while at < len(data):
        length = data[at]
        if length >= 0xC0:
            return at + 2
        if length > 63:
            break
        at += 1 + length
        if length == 0:
            return at
    raise Malformed("the owner name of a record is cut off or of unknown type")


def _parse_records(data: bytes, at: int, before: int, additional: int) -> Edns | None:
    """Walk the records from `at` to the end of `data`; returns the OPT among the last `additional` ones."""
    edns: Edns | None = None
    for index in range(before + additional):
        start = at
        at = _any_name_end(data, at)
        if at + 10 > len(data):
            raise Malformed("a record is cut off")
        rtype, size, ttl, length = _FIXED.unpack_from(data, at)
        at += 10
        if at + length > len(data):
            raise Malformed("the data of a record is cut off")
        if rtype == OPT:
            if edns is not None or index < before or data[start] != 0:
                raise Malformed("OPT stands twice, in a wrong section or at a name")
            edns = Edns(size, ttl >> 16 & 0xFF, ttl & 0xFFFF, _client_subnet(data[at : at + length]))
        at += length
    if at != len(data):
        raise Malformed(f"{len(data) - at} bytes follow the last record")
    return edns


def _client_subnet(options: bytes) -> bytes:
    """The data of the client subnet option (RFC 7871) among EDNS `options`, or b""."""
    at, found = 0, b""
    while at < len(options):
        if at + 4 > len(options):
            raise Malformed("an EDNS option is cut off")
        code, length = _QUESTION.unpack_from(options, at)
        at += 4
        if at + length > len(options) or (code == _ECS and not 4 <= length <= _ECS_SIZE):
            raise Malformed("the data of an EDNS option is cut off")
        if code == _ECS:
            found = options[at : at + length]
        at += length
    return found


class _Writer:
    """A response under construction. `offsets` maps every lower-case name suffix written so far to its place."""

    __slots__ = ("data", "offsets")

    def __init__(self, query: Query) -> None:
        self.data = bytearray(HEADER)
        self.offsets: dict[bytes, int] = {}
        self.name(query.wire)
        self.data += _QUESTION.pack(query.qtype, query.qclass)

    def name(self, wire: bytes, *, compress: bool = True) -> None:
        """Append a name, ending in a pointer to its longest suffix already written (RFC 1035 section 4.1.4)."""
        at, lower = 0, wire.lower()
        while wire[at]:
            suffix = lower[at:]
            known = self.offsets.get(suffix)
            if known is not None and compress:
                self.data += (0xC000 | known).to_bytes(2, "big")
                return
            if known is None and len(self.data) <= _MAX_POINTER:
                self.offsets[suffix] = len(self.data)
            step = at + 1 + wire[at]
            self.data += wire[at:step]
            at = step
        self.data.append(0)

    def record(self, owned: Owned) -> None:
        """Append a record."""
        owner, rtype, ttl, rdata = owned
        self.name(owner)
        self.data += _FIXED.pack(rtype, IN, ttl, 0)
        start = len(self.data)
        at = _NAME_OFFSET.get(rtype)
        if at is None:
            self.data += rdata
        elif rtype == SOA:
            first = rdata.index(0) + 1
            second = rdata.index(0, first) + 1
            self.name(rdata[:first])
            self.name(rdata[first:second])
            self.data += rdata[second:]
        else:
            self.data += rdata[:at]
            self.name(rdata[at:], compress=rtype != SRV)  # RFC 2782: the target of SRV is never compressed
        self.data[start - 2 : start] = (len(self.data) - start).to_bytes(2, "big")

    def size(self, owned: Owned) -> int:
        """Most bytes that the record would take if it came next, or later."""
        owner, _, _, rdata = owned
        at, lower = 0, owner.lower()
        while owner[at] and lower[at:] not in self.offsets:
            at += 1 + owner[at]
        return at + (2 if owner[at] else 1) + _FIXED.size + len(rdata)

    def undo(self, size: int) -> None:
        """Take back all behind the first `size` bytes."""
        del self.data[size:]
        self.offsets = {name: at for name, at in self.offsets.items() if at < size}


def respond(
    query: Query,
    flags: int,
    rcode: int,
    limit: int,
    answers: Iterable[Group] = (),
    authority: Sequence[Owned] = (),
    additional: Sequence[Owned] = (),
    *,
    most: int = 0,
    mark: bool = True,
) -> bytes:
    """The response to `query` in at most `limit` bytes: the question in the client's spelling, `flags` (AA, RA) added to
    QR, opcode and RD, and OPT if the client sent one. As many `answers` from the front as fit (at most `most`, 0 = any number),
    each with its additional records; `authority` and `additional` if all of them do. TC is set whenever something was left out,
    unless `mark` is False. Takes no more of `answers` than it must to know."""
    writer, opt = _Writer(query), _opt(query.edns, rcode) if query.edns is not None else b""
    room = limit - len(opt)
    count, extra, whole = _write_answers(writer, answers, room, most)
    reserved = sum(map(writer.size, extra))
    above = _write_all(writer, authority, room - reserved) if whole else 0
    for owned in extra:
        writer.record(owned)
    beside = _write_all(writer, additional, room) if whole else 0
    whole = whole and above == len(authority) and beside == len(additional)
    writer.data += opt
    head = QR | query.flags & (OPCODE | RD) | flags | rcode & 0xF | (0 if whole or not mark else TC)
    _HEADER.pack_into(writer.data, 0, query.id, head, 1, count, above, len(extra) + beside + bool(opt))
    return bytes(writer.data)


def _write_answers(writer: _Writer, answers: Iterable[Group], room: int, most: int) -> tuple[int, dict[Owned, None], bool]:
    """Write answers as long as they, and the additional records that belong to them, fit into `room` bytes. Returns how many
    were written, their additional records, and whether that was all."""
    count, reserved, extra = 0, 0, dict[Owned, None]()
    for answer, more in answers:
        before = len(writer.data)
        if count < most or not most:
            writer.record(answer)
            fresh = dict.fromkeys(owned for owned in more if owned not in extra)
            wanted = sum(map(writer.size, fresh)) if fresh else 0
        if (most and count >= most) or len(writer.data) + reserved + wanted > room:
            writer.undo(before)
            return count, extra, False
        count, reserved = count + 1, reserved + wanted
        extra.update(fresh)
    return count, extra, True


def _write_all(writer: _Writer, records: Sequence[Owned], room: int) -> int:
    """Write all `records` if they fit into `room` bytes, else none; returns how many."""
    before = len(writer.data)
    for owned in records:
        writer.record(owned)
    if len(writer.data) <= room:
        return len(records)
    writer.undo(before)
    return 0


def _opt(edns: Edns, rcode: int) -> bytes:
    """OPT of a response: the size that we take, the client's DO bit, version 0, its subnet with our scope (RFC 7871 section 7.2.1)."""
    option = b""
    if edns.ecs:
        option = _QUESTION.pack(_ECS, len(edns.ecs)) + edns.ecs[:3] + bytes((edns.scope,)) + edns.ecs[4:]
    return b"\0" + _FIXED.pack(OPT, ADVERTISED_SIZE, rcode >> 4 << 24 | edns.flags & 0x8000, len(option)) + option


def bare_response(data: bytes, rcode: int) -> bytes:
    """A header without sections, for a message whose question cannot be echoed. `data` holds at least a header."""
    ident, flags = _QUESTION.unpack_from(data)
    return _HEADER.pack(ident, QR | flags & (OPCODE | RD) | rcode, 0, 0, 0, 0)
