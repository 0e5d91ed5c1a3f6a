# SPDX-License-Identifier: Apache-2.0
"""Table and the bytes of a query -> the bytes of its response, or the verdict that an upstream must answer. Pure.

In order: what is no query is dropped or gets FORMERR; other opcodes and zone transfers NOTIMP; a name of the table is
answered (NODATA when it has no record of the type); a name of our zones that is not in the table is NXDOMAIN; a single
label is a container's name, else a service's, so unknown ones are NXDOMAIN too; all else is forwarded, or REFUSED without upstreams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from plait.dns import message as m
from plait.dns.grammar import address_in_name, canonical, labels_in_name
from plait.dns.table import Records, Table

Chooser = Callable[[int], int]
"""`chooser(n)` picks a number from 0 to n - 1."""

_ABOUT_TOP_LEVEL = frozenset((m.NS, m.SOA, m.DS, m.DNSKEY))
"""Asked for a single label, these are about a top-level domain (a validating forwarder does it), not about a container."""
_ADDRESSES = frozenset((m.A, m.AAAA, m.CNAME))
_DRAWS = 1 << 30
_REFRESH = (3600).to_bytes(4, "big") + (600).to_bytes(4, "big") + (86400).to_bytes(4, "big") + (0).to_bytes(4, "big")


class Forward:
    """The name is not ours: `query` goes to an upstream."""

    __slots__ = ("query",)

    def __init__(self, query: m.Query) -> None:
        self.query = query


def answer(
    table: Table, data: bytes, max_size: int, chooser: Chooser, *, stream: bool = False, recursion: bool = False
) -> bytes | Forward | None:
    """The response to `data`, Forward, or None when it deserves no response (too short, or itself a response).

    `max_size`: most bytes of a response over UDP whatever the client claims to take. `stream`: it came over TCP, where
    only the length prefix limits. `recursion`: upstreams are configured (sets RA, allows Forward). Records of one answer
    come in an order drawn by `chooser` (see `arrange`). TTLs are 0.
    """
    try:
        query = m.parse_query(data)
    except m.Malformed as error:
        if not error.header:
            return None
        return m.bare_response(data, m.NOTIMP if _opcode(data) else m.FORMERR)
    limit = m.STREAM_SIZE if stream else _udp_limit(query, max_size)
    ra = m.RA if recursion else 0
    refusal = _refusal(query, data)
    if refusal is not None:
        return m.respond(query, ra, refusal, limit)
    return _resolve(table, query, limit, chooser, ra)


def failure(query: m.Query, max_size: int) -> bytes:
    """SERVFAIL for a query that could not be forwarded."""
    return m.respond(query, m.RA, m.SERVFAIL, _udp_limit(query, max_size))


def _opcode(data: bytes) -> int:
    return data[2] & 0x78


def _udp_limit(query: m.Query, max_size: int) -> int:
    return m.PLAIN_SIZE if query.edns is None else max(m.PLAIN_SIZE, min(query.edns.size, max_size))


def _refusal(query: m.Query, data: bytes) -> int | None:
    """The error code for what is refused whatever its name, or None."""
    if _opcode(data) or query.qtype in (m.AXFR, m.IXFR):
        return m.NOTIMP
    if query.edns is not None and query.edns.version:
        return m.BADVERS
    return m.REFUSED if query.qclass not in (m.IN, m.ANY) else None


def _resolve(table: Table, query: m.Query, limit: int, chooser: Chooser, ra: int) -> bytes | Forward:
    zone = _zone_of(table, query.key)
    alone = query.key and b"." not in query.key and query.qtype not in _ABOUT_TOP_LEVEL
    records = lookup(table, query.key)
    if records is None and alone:
        records = table.names.get(query.key + b".service." + table.domain)
    if records is not None:
        wanted = _wanted(records, query.qtype)
        if query.key in table.zones and query.qtype in (m.SOA, m.ANY):
            wanted.append((m.SOA, _soa(table)))
        arrange(wanted, chooser)
        groups = [((query.wire, *record), _additional(table, record)) for record in wanted]
        authority = [] if groups else [(query.wire if zone is None else m.wire_name(zone), m.SOA, _soa(table))]
        spelled = [] if groups else [(query.wire, *record) for record in records if _spells_address(table, query.key)]
        return m.respond(query, m.AA | ra, m.NOERROR, limit, groups, authority, spelled)
    if zone is not None:
        return m.respond(query, m.AA | ra, m.NXDOMAIN, limit, (), [(m.wire_name(zone), m.SOA, _soa(table))])
    if alone:
        return m.respond(query, m.AA | ra, m.NXDOMAIN, limit)
    if ra and query.recursion_desired:
        return Forward(query)
    return m.respond(query, ra, m.REFUSED, limit)


def _wanted(records: Records, qtype: int) -> list[m.Record]:
    """The records of type `qtype`, all for ANY; where there is none, one alias if there is any (RFC 1034 section 3.6.2)."""
    wanted = [record for record in records if qtype in (record[0], m.ANY)]
    return wanted or [record for record in records if record[0] == m.CNAME][:1]


def lookup(table: Table, key: bytes) -> Records | None:
    """All records of a dotted name, in the table's order; () if it exists without any, None if it does not exist."""
    found = table.names.get(key)
    if not key.endswith(b"." + table.domain):
        return found
    name = canonical(key, table.domain, table.datacenter)
    selected = labels_in_name(name, table.domain)
    return _labelled(table, *selected) if selected is not None else _named(table, name)


def _named(table: Table, name: bytes) -> Records | None:
    """The records of a canonical name that is no choice by label."""
    address = address_in_name(name, table.domain)
    if address is not None:
        return ((m.A if len(address) == 4 else m.AAAA, address),)
    return table.names.get(name)


def _spells_address(table: Table, key: bytes) -> bool:
    """Whether the name is that of an address, which is given even to those who asked for another type."""
    return address_in_name(canonical(key, table.domain, table.datacenter), table.domain) is not None


def _labelled(table: Table, wanted: list[list[bytes]], unwanted: list[list[bytes]]) -> Records | None:
    """SRV of the instances that fit (see `labels_in_name`), and the addresses of their targets."""

    def having(names: list[bytes]) -> set[m.Record]:
        return {record for name in names for record in table.names.get(name, ())}

    found = set.intersection(*map(having, wanted)).difference(*map(having, unwanted))
    records = set(found)
    for _, rdata in found:
        target = rdata[6:]
        # Not `lookup`: somebody may have registered a choice by label as a host name.
        host = _named(table, canonical(m.dotted(target), table.domain, table.datacenter))
        records.update([(m.CNAME, target)] if host is None else [(kind, data) for kind, data in host if kind in _ADDRESSES])
    return tuple(sorted(records)) or None


def shuffle(records: list[m.Record], chooser: Chooser) -> None:
    """Put `records` into an order drawn by `chooser`, each order equally likely (Fisher and Yates)."""
    for last in range(len(records) - 1, 0, -1):
        other = chooser(last + 1)
        records[last], records[other] = records[other], records[last]


def arrange(records: list[m.Record], chooser: Chooser) -> None:
    """Put `records` into an order drawn by `chooser`: SRV records of higher weight tend to come first, in each place with
    the chance that RFC 2782 gives them among those left; weight 0 comes last. Without differing weights, as `shuffle`."""
    shuffle(records, chooser)
    if len({_weight(record) for record in records}) > 1:
        # Exponential waiting times at the rate of each weight end in that order (Efraimidis and Spirakis 2006).
        records.sort(key=lambda record: -math.log((chooser(_DRAWS) + 1) / _DRAWS) / weight if (weight := _weight(record)) else math.inf)


def _weight(record: m.Record) -> int:
    """The weight in SRV data, 1 for a record of another type."""
    rtype, rdata = record
    return int.from_bytes(rdata[2:4], "big") if rtype == m.SRV else 1


def _zone_of(table: Table, key: bytes) -> bytes | None:
    """The longest of our zones that `key` is or lies below."""
    while key and key not in table.zones:
        key = key.partition(b".")[2]
    return key or None


def _additional(table: Table, record: m.Record) -> Sequence[m.Owned]:
    """The addresses of the host that an SRV or NS record names."""
    rtype, rdata = record
    if rtype not in (m.SRV, m.NS):
        return ()
    target = rdata[6:] if rtype == m.SRV else rdata
    found = lookup(table, m.dotted(target)) or ()
    return [(target, kind, address) for kind, address in found if kind in (m.A, m.AAAA)]


def _soa(table: Table) -> bytes:
    """SOA data as Consul has it: ns.<domain> hostmaster.<domain> serial 3600 600 86400 0."""
    names = m.wire_name(b"ns." + table.domain) + m.wire_name(b"hostmaster." + table.domain)
    return names + (table.serial & 0xFFFFFFFF).to_bytes(4, "big") + _REFRESH
