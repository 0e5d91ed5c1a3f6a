# SPDX-License-Identifier: Apache-2.0
"""Table and the bytes of a query -> the bytes of its response, or the verdict that an upstream must answer. Pure.

In order: what is no query is dropped or gets FORMERR; other opcodes and zone transfers NOTIMP; a name of the table is
answered (NODATA when it has no record of the type); a name of our zones that is not in the table is NXDOMAIN; a single
label is a container's name, else a service's, so unknown ones are NXDOMAIN too; all else is forwarded. Without upstreams, and to who is
on internal networks alone, addresses have no names (NXDOMAIN), and the rest is REFUSED.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from plait.dns import message as m
from plait.dns.grammar import canonical, query_in_name
from plait.dns.lookup import hosted, lookup, spells_address, zone_of
from plait.dns.options import DEFAULTS, MOST_PLAIN, Options
from plait.dns.order import Chooser, arrange, nearest_first
from plait.dns.table import Records, Table
from plait.dns.view import View

_ABOUT_TOP_LEVEL = frozenset((m.NS, m.SOA, m.DS, m.DNSKEY))
"""Asked for a single label, these are about a top-level domain (a validating forwarder does it), not about a container."""
_ABOUT_ZONE = frozenset((m.SOA, m.NS))
_CAPPED = frozenset((m.A, m.AAAA, m.ANY))
_NAMING = frozenset((m.NS, m.CNAME, m.PTR, m.SRV))
_REVERSE = (b".in-addr.arpa", b".ip6.arpa")
"""Below these, what nobody else can be asked about does not exist: a host without a name is found out at once."""
_DEPTH = 3
"""Aliases followed for one question."""
_MOST_HOSTS, _MOST_BESIDE = 4, 5
"""Hosts outside whose addresses are fetched for one answer to SRV; records of an answer about one, for a client without EDNS."""
_LEAST_RECORD = 16
"""Bytes that an answer takes at the least: a pointer, ten bytes, an IPv4 address."""


Found = tuple[bytes, int, bool, Records]
"""What a prepared query gives: the service's name, the TTL in seconds or -1 for that of the service, whether the records are in an
order that must be kept, the records."""


Origin = tuple[bytes, int]
"""Where a query comes from: a packed address and the length of its prefix; (b"", 0) if it is not known."""


class Pending:
    """No response yet: somebody must be asked first."""

    __slots__ = ("query",)

    def __init__(self, query: m.Query) -> None:
        self.query = query


class Forward(Pending):
    """The name is not ours: `query` goes to an upstream."""

    __slots__ = ()


class Follow(Pending):
    """The answer so far is a `chain` of aliases that leads out of our zones: `data` goes to an upstream, and `finish` makes the
    response of what comes back, or finds that it leads on."""

    __slots__ = ("_asked", "_chain", "data")

    def __init__(self, asked: _Asked, chain: list[m.Owned]) -> None:
        super().__init__(asked.query)
        self._asked, self._chain, self.data = asked, chain, m.question(chain[-1][3], asked.query.qtype)

    def finish(self, response: bytes) -> bytes | Pending:
        """What an upstream that fails adds is nothing: the aliases are true without it."""
        try:
            found = m.read_addresses(response)
        except m.Malformed:
            return _chained(self._asked, self._chain)
        chain = self._chain + found
        if response[3] & 0xF == m.NXDOMAIN:  # it is about the last alias (RFC 6604)
            return _chained(self._asked, chain, m.NXDOMAIN)
        return _follow(self._asked, chain) if found and chain[-1][1] == m.CNAME else _chained(self._asked, chain)


class Fetch(Pending):
    """The answer is made but for the addresses of hosts outside that its SRV records name: `questions` go to upstreams, all at once, and
    `finish` makes the response of what comes back for each."""

    __slots__ = ("_asked", "_groups", "_most", "questions")

    def __init__(self, asked: _Asked, groups: list[m.Group], most: int, targets: list[bytes]) -> None:
        super().__init__(asked.query)
        self._asked, self._groups, self._most = asked, groups, most
        self.questions = [m.question(target, qtype) for target in targets for qtype in (m.A, m.AAAA)]

    def finish(self, responses: list[bytes]) -> bytes:
        """The addresses of all hosts, or of none if there is no room: without them the answer is whole too."""
        beside: dict[tuple[bytes, int, bytes], m.Owned] = {}
        for response in responses:
            for owned in _outside_addresses(response)[: _MOST_BESIDE if self._asked.plain else None]:
                beside.setdefault((owned[0].lower(), owned[1], owned[3]), owned)
        alone, whole = (_answered(self._asked, self._groups, self._most, more) for more in ((), list(beside.values())))
        return whole if m.truncated(whole) == m.truncated(alone) else alone


def _outside_addresses(response: bytes) -> list[m.Owned]:
    """What an upstream says of a host; nothing if it fails."""
    try:
        return m.read_addresses(response) if response[3] & 0xF == m.NOERROR else []
    except m.Malformed:
        return []


class Ask(Pending):
    """The name is that of a prepared query: the agent knows what the one called `name` gives to who asks from `origin`. That is the
    subnet that the query tells, on all of which the answer then hangs, or the client's address."""

    __slots__ = ("_asked", "_key", "name", "origin")

    def __init__(self, asked: _Asked, key: bytes, name: bytes) -> None:
        super().__init__(asked.query)
        self._asked, self._key, self.name = asked, key, name
        self.origin: Origin = (asked.view.source, 8 * len(asked.view.source))
        edns = asked.query.edns
        if edns is not None and edns.subnet is not None:
            self.origin = edns.subnet
            edns.scope = edns.subnet[1]

    def finish(self, found: Found | None) -> bytes | Pending:
        """`found` None: there is no such query; a query without instances does not exist either."""
        asked = self._asked
        if found is None or not found[3]:
            return _absent(asked, asked.table.domain)
        service, ttl, ordered, records = found
        ttl = asked.options.ttl_of_service(service) if ttl < 0 else ttl
        return _found(asked, self._key, records, asked.table.domain, ttl, ordered=ordered)


class _Asked:
    """A query and what it is answered from. `key`: its name below our domain, also where it was asked by the other name of that."""

    __slots__ = ("alias", "chooser", "key", "limit", "options", "plain", "query", "ra", "table", "view")

    def __init__(
        self,
        table: Table,
        query: m.Query,
        limit: int,
        chooser: Chooser,
        ra: int,
        options: Options,
        plain: bool,
        view: View,
        key: bytes | None = None,
    ) -> None:
        key = query.key if key is None else key
        self.view = view
        self.table, self.query, self.limit, self.chooser, self.ra, self.options = table, query, limit, chooser, ra, options
        self.plain, self.key, self.alias = plain, key, False
        alt = options.alt_domain
        if alt and (key == alt or key.endswith(b"." + alt)):
            self.key, self.alias = key[: -len(alt)] + table.domain, True

    def spelled(self, wire: bytes) -> bytes:
        """A name of ours in the domain that was asked for."""
        domain = m.wire_name(self.table.domain)
        if not self.alias or not wire.lower().endswith(domain):
            return wire
        renamed = wire[: -len(domain)] + m.wire_name(self.options.alt_domain)
        return renamed if len(renamed) <= m.NAME_SIZE else wire


def answer(
    table: Table,
    data: bytes,
    max_size: int,
    chooser: Chooser,
    *,
    stream: bool = False,
    recursion: bool = False,
    options: Options = DEFAULTS,
    view: View | None = None,
) -> bytes | Pending | None:
    """The response to `data`, who must be asked for it, or None when it deserves no response (too short, or itself a response).

    `max_size`: most bytes of a response over UDP whatever the client claims to take. `stream`: it came over TCP, where
    only the length prefix limits. `recursion`: upstreams are configured (sets RA, allows Forward and Follow). Records of one answer
    come in an order drawn by `chooser` (see `arrange`). `view`: what the client sees, all if not given.
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
    return _resolve(_Asked(table, query, limit, chooser, ra, options, not stream and query.edns is None, view or View()))


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


def _resolve(asked: _Asked) -> bytes | Pending:
    table, query, key = asked.table, asked.query, asked.key
    zone = zone_of(table, key)
    if zone == table.domain and query.qtype in _ABOUT_ZONE:  # of any name in it, as Consul's clients know it
        return _found(asked, zone, table.names.get(zone, ()), zone, 0)
    alone = key and b"." not in key and query.qtype not in _ABOUT_TOP_LEVEL
    records = lookup(table, key, asked.view)
    if records is None and alone:
        key += b".service." + table.domain
        records = table.names.get(key)
    if records is not None:
        return _found(asked, key, records, zone, _ttl(asked, key))
    if zone is not None:
        wanted = query_in_name(canonical(key, table.domain, table.datacenter), table.domain) if zone == table.domain else None
        return _absent(asked, zone) if wanted is None else Ask(asked, key, wanted)
    if alone or key in table.names:  # a name that exists for others is not asked for elsewhere
        return _absent(asked, None)
    if asked.ra and query.recursion_desired and asked.view.leads_out():
        return Forward(query)
    if key.endswith(_REVERSE):
        return _absent(asked, table.domain)
    return m.respond(query, asked.ra, m.REFUSED, asked.limit)


def _absent(asked: _Asked, zone: bytes | None) -> bytes:
    return m.respond(asked.query, m.AA | asked.ra, m.NXDOMAIN, asked.limit, (), [_soa(asked, zone)])


def _found(asked: _Asked, key: bytes, records: Records, zone: bytes | None, ttl: int, *, ordered: bool = False) -> bytes | Pending:
    """The response about a name that exists, with `records`; in the order that they have if they are `ordered`."""
    query, options, table, flags = asked.query, asked.options, asked.table, m.AA | asked.ra
    if key in table.zones and query.qtype == m.SOA:
        return _about_zone(asked, key, records)
    wanted = _wanted(records, query.qtype)
    if key in table.zones and query.qtype == m.ANY:
        wanted.append((m.SOA, _soa(asked, key)[3]))
    if not wanted:
        spelled = [(query.wire, rtype, ttl, rdata) for rtype, rdata in records if spells_address(table, key)]
        return m.respond(query, flags, m.NOERROR, asked.limit, (), [_soa(asked, zone)], spelled)
    if wanted[0][0] == m.CNAME and query.qtype in (m.A, m.AAAA):
        return _follow(asked, [(query.wire, m.CNAME, ttl, _renamed(asked, wanted[0]))])
    capped = options.a_record_limit if query.qtype in _CAPPED else 0
    most = min(options.udp_answer_limit, MOST_PLAIN) if asked.plain else 0
    if not ordered:
        shown = capped or most or asked.limit // _LEAST_RECORD + 1
        arrange(wanted, asked.chooser, shown if options.near is None else None)
        if options.near is not None:
            nearest_first(wanted, options.near, lambda target: hosted(table, target))
    owner = asked.spelled(m.wire_name(key)) if key in table.zones else query.wire
    groups = _groups(asked, owner, wanted[:capped] if capped else wanted, ttl)
    outside = _outside_targets(asked, wanted)
    return Fetch(asked, list(groups), most, outside) if outside else _answered(asked, groups, most)


def _answered(asked: _Asked, groups: Iterable[m.Group], most: int, beside: Sequence[m.Owned] = ()) -> bytes:
    """The response that is made of answers, and of what may stand `beside` them."""
    mark = asked.options.truncate
    return m.respond(asked.query, m.AA | asked.ra, m.NOERROR, asked.limit, groups, (), beside, most=most, mark=mark)


def _outside_targets(asked: _Asked, records: list[m.Record]) -> list[bytes]:
    """The first few hosts that SRV records name and upstreams may know."""
    if asked.query.qtype != m.SRV or not (asked.ra and asked.query.recursion_desired):
        return []
    ours = m.wire_name(asked.table.domain)  # most are below it: spares them the search
    targets = dict.fromkeys(rdata[6:] for rtype, rdata in records if rtype == m.SRV and not rdata.endswith(ours))
    outside = (target for target in targets if zone_of(asked.table, key := m.dotted(target)) is None and key not in asked.table.names)
    found = list(islice(outside, _MOST_HOSTS))
    return found if found and asked.view.leads_out() else []


def _follow(asked: _Asked, chain: list[m.Owned]) -> bytes | Pending:
    """Go on from the last alias of `chain`: inside our zones by the table, else by an upstream if there is one."""
    while sum(rtype == m.CNAME for _, rtype, _, _ in chain) <= _DEPTH:
        key = m.dotted(chain[-1][3])
        below = _Asked(asked.table, asked.query, asked.limit, asked.chooser, asked.ra, asked.options, asked.plain, asked.view, key)
        records = lookup(asked.table, below.key, asked.view)
        if records is None:
            outside = asked.ra and asked.query.recursion_desired and zone_of(asked.table, below.key) is None
            return Follow(asked, chain) if outside and asked.view.leads_out() else _chained(asked, chain)
        ttl, wanted = _ttl(below, below.key), _wanted(records, asked.query.qtype)
        arrange(wanted, asked.chooser)
        chain += [(chain[-1][3], rtype, ttl, _renamed(below, (rtype, rdata))) for rtype, rdata in wanted]
        if not wanted or chain[-1][1] != m.CNAME:
            break
    return _chained(asked, chain)


def _chained(asked: _Asked, chain: list[m.Owned], rcode: int = m.NOERROR) -> bytes:
    """The response that is made of aliases and what they lead to."""
    return m.respond(asked.query, m.AA | asked.ra, rcode, asked.limit, ((owned, ()) for owned in chain), mark=asked.options.truncate)


def _groups(asked: _Asked, owner: bytes, records: list[m.Record], ttl: int) -> Iterator[m.Group]:
    """The records of `owner` as answers, each with the addresses of the host that it names."""
    for record in records:
        yield (owner, record[0], ttl, _renamed(asked, record)), _additional(asked, record, ttl)


def _ttl(asked: _Asked, key: bytes) -> int:
    """Seconds that what is said of the name may be kept: by what stands before its keyword; 0 for all names but those of services, nodes
    and addresses."""
    table, options = asked.table, asked.options
    if not key.endswith(b"." + table.domain):
        return 0
    labels = canonical(key, table.domain, table.datacenter)[: -len(table.domain) - 1].rsplit(b".", 2)
    if labels[-1] in (b"service", b"virtual") and len(labels) > 1:
        return options.ttl_of_service(labels[-2])
    return options.node_ttl if labels[-1] in (b"node", b"addr") else 0


def _wanted(records: Records, qtype: int) -> list[m.Record]:
    """The records of type `qtype`, all for ANY; where there is none, one alias if there is any (RFC 1034 section 3.6.2)."""
    wanted = [record for record in records if qtype in (record[0], m.ANY)]
    return wanted or [record for record in records if record[0] == m.CNAME][:1]


def _additional(asked: _Asked, record: m.Record, ttl: int) -> list[m.Owned]:
    """The addresses of the host that an SRV or NS record names; beside SRV the meta of a node too, if that is wanted."""
    rtype, rdata = record
    if rtype not in (m.SRV, m.NS):
        return []
    shown = (m.A, m.AAAA, m.TXT) if rtype == m.SRV and asked.options.node_meta_txt else (m.A, m.AAAA)
    target = rdata[6:] if rtype == m.SRV else rdata
    found = lookup(asked.table, m.dotted(target), asked.view) or ()
    return [(asked.spelled(target), kind, ttl, data) for kind, data in found if kind in shown]


def _renamed(asked: _Asked, record: m.Record) -> bytes:
    """The data of a record, a name in it as `spelled`."""
    rtype, rdata = record
    if not asked.alias or rtype not in _NAMING:
        return rdata
    at = 6 if rtype == m.SRV else 0
    return rdata[:at] + asked.spelled(rdata[at:])


def _soa(asked: _Asked, zone: bytes | None) -> m.Owned:
    """The SOA record of a zone, of the name asked for if it has none: ns.<domain> hostmaster.<domain> serial and four times. Its TTL is
    the last of them, so that an absence is kept as long in whichever way a resolver reads RFC 2308."""
    table, soa = asked.table, asked.options.soa
    owner = asked.query.wire if zone is None else asked.spelled(m.wire_name(zone))
    names = asked.spelled(m.wire_name(b"ns." + table.domain)) + asked.spelled(m.wire_name(b"hostmaster." + table.domain))
    numbers = (table.serial & 0xFFFFFFFF, *soa)
    return owner, m.SOA, soa[3], names + b"".join(number.to_bytes(4, "big") for number in numbers)


def _about_zone(asked: _Asked, zone: bytes, records: Records) -> bytes:
    """SOA of a zone as the answer, its name servers beside it."""
    soa = _soa(asked, zone)
    servers = [record for record in records if record[0] == m.NS]
    authority = [(soa[0], m.NS, 0, _renamed(asked, record)) for record in servers]
    glue = [owned for record in servers for owned in _additional(asked, record, 0)]
    return m.respond(asked.query, m.AA | asked.ra, m.NOERROR, asked.limit, [(soa, ())], authority, glue)
