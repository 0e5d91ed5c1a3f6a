# SPDX-License-Identifier: Apache-2.0
"""Addresses, routes and neighbours <-> rtnetlink messages.

Sources: rtnetlink(7), include/uapi/linux/{if_addr,rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.link import ADDRESS6_FLAGS, mac_bytes
from plait.model.addr import IPAddress, IPNetwork
from plait.model.egress import EGRESS_TABLES
from plait.model.objects import PREFIX, ROUTE_PROTOCOL, Addr, Neigh, Route
from plait.model.routing import TABLES

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTR4_U32 = struct.Struct("=HHI")
NDMSG = struct.Struct("=BxxxiHBB")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RTA_VIA, _VIA_FAMILY = 18, struct.Struct("=H")
"""struct rtvia: a next hop of another family than the destination's (since Linux 5.2)."""
_RTAX_MTU, _RTNH_F_ONLINK, _TABLE_MAIN, _TABLE_LOCAL = 2, 4, 254, 255
_KINDS = {"unicast": 1, "blackhole": 6, "unreachable": 7}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}
_SCOPES = {"global": 0, "link": 253, "host": 254}
_SCOPE_NAMES = {number: name for name, number in _SCOPES.items()}
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT, NUD_NOARP = 0x80, 0x40
_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}
_FAMILIES = tuple(_BITS)
_CLONED = 0x200
"""Flag of what was learnt of one destination of a route (RTM_F_CLONED)."""
_METRIC6 = 1024
"""The metric that IPv6 gives a route without one (IP6_RT_PRIO_USER, include/uapi/linux/ipv6_route.h)."""


MADE = 2048
"""So many addresses are remembered, and networks: each pass reads the same ones, and to make one takes longer than all else of a row."""


def check_size(body: bytes, size: int, what: str) -> None:
    if len(body) < size:
        raise nl.NetlinkParseError(f"{what} message of {len(body)} bytes is too short")


@lru_cache(MADE)
def _address(data: bytes, family: int) -> IPAddress:
    if len(data) * 8 != _BITS.get(family):
        raise nl.NetlinkParseError(f"an address of family {family} of {len(data)} bytes")
    return IPv4Address(data) if family == socket.AF_INET else IPv6Address(data)


def _family(address: IPAddress) -> int:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


# --- addresses


def put_addr(addr: Addr, index: int) -> nl.Message:
    return nl.Message(RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _addr_body(addr, index))


def del_addr(addr: Addr, index: int) -> nl.Message:
    return nl.Message(RTM_DELADDR, 0, _addr_body(addr, index))


def _addr_body(addr: Addr, index: int) -> bytes:
    family, packed = _family(addr.address.ip), addr.address.ip.packed
    body = _IFADDR.pack(family, addr.address.network.prefixlen, 0, 0, index) + nl.attr(_IFA_LOCAL, packed) + nl.attr(_IFA_ADDRESS, packed)
    return body if family == socket.AF_INET else body + nl.attr_u32(_IFA_FLAGS, ADDRESS6_FLAGS)


def dump_addrs(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[Addr]:
    """Addresses on the links in `names` (index -> name), but those of link scope, which IPv6 makes itself."""
    found = [row for family in _FAMILIES for row in sock.dump(RTM_GETADDR, _IFADDR.pack(family, 0, 0, 0, 0))]
    return [addr for kind, body in found if kind == RTM_NEWADDR and (addr := decode_addr(body, names)) is not None]


def decode_addr(body: bytes, names: dict[int, str]) -> Addr | None:
    check_size(body, _IFADDR.size, "address")
    family, prefix, _, _, index = _IFADDR.unpack_from(body)
    attrs = nl.parse_attrs(body[_IFADDR.size :])
    local = attrs.get(_IFA_LOCAL, attrs.get(_IFA_ADDRESS))
    if index not in names or local is None or prefix > _BITS.get(family, 0):
        return None
    address = _address(local, family)
    if isinstance(address, IPv4Address):
        return Addr(names[index], IPv4Interface((address, prefix)))
    return None if address.is_link_local else Addr(names[index], IPv6Interface((address, prefix)))


# --- routes


def put_route(route: Route, index: int) -> nl.Message:
    return nl.Message(RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _route_body(route, index))


def del_route(route: Route, index: int) -> nl.Message:
    return nl.Message(RTM_DELROUTE, 0, _route_body(route, index))


def _route_body(route: Route, index: int) -> bytes:
    flags = _RTNH_F_ONLINK if route.onlink else 0
    kind, scope, family = _KINDS[route.kind], _SCOPES[route.scope], _family(route.dst.network_address)
    head = _RTMSG.pack(family, route.dst.prefixlen, 0, 0, 0 if route.table else _TABLE_MAIN, ROUTE_PROTOCOL, scope, kind, flags)
    parts = [head, nl.attr(_RTA_DST, route.dst.network_address.packed)]
    if route.table:
        parts.append(_ATTR4_U32.pack(8, _RTA_TABLE, route.table))
    if index:
        parts.append(_ATTR4_U32.pack(8, _RTA_OIF, index))
    if route.via is not None:
        own = route.via.version == route.dst.version
        packed = route.via.packed if own else _VIA_FAMILY.pack(_family(route.via)) + route.via.packed
        parts.append(nl.attr(_RTA_GATEWAY if own else _RTA_VIA, packed))
    if route.metric:
        parts.append(_ATTR4_U32.pack(8, _RTA_PRIORITY, route.metric))
    if route.src is not None:
        parts.append(nl.attr(_RTA_PREFSRC, route.src.packed))
    if route.mtu:
        parts.append(nl.nested(_RTA_METRICS, nl.attr_u32(_RTAX_MTU, route.mtu)))
    return b"".join(parts)


def dump_routes(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[Route]:
    """Routes of our protocol in the main table and in those that lead to gateways; the kernel filters by protocol (strict checking)."""
    heads = [_RTMSG.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0) for family in _FAMILIES]
    found = [row for head in heads for row in sock.dump(RTM_GETROUTE, head)]
    return [route for kind, body in found if kind == RTM_NEWROUTE and (route := decode_route(body, names)) is not None]


def decode_route(body: bytes, names: dict[int, str]) -> Route | None:
    check_size(body, _RTMSG.size, "route")
    family, prefix, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[_RTMSG.size :])
    table = nl.number_of(attrs.get(_RTA_TABLE), table)
    bits = _BITS.get(family, -1)
    if protocol != ROUTE_PROTOCOL or not (table == _TABLE_MAIN or table in EGRESS_TABLES) or kind not in _KIND_NAMES or prefix > bits:
        return None
    metrics = nl.parse_attrs(attrs.get(_RTA_METRICS, b""))
    oif = nl.number_of(attrs.get(_RTA_OIF))
    unicast = _KIND_NAMES[kind] == "unicast"
    metric = nl.number_of(attrs.get(_RTA_PRIORITY))
    return Route(
        dst=_network(attrs.get(_RTA_DST, bytes(bits // 8)), family, prefix),
        dev=names.get(oif, f"if{oif}") if unicast else "",
        via=_via(attrs, family),
        onlink=bool(flags & _RTNH_F_ONLINK),
        src=_address(attrs[_RTA_PREFSRC], family) if _RTA_PREFSRC in attrs else None,
        mtu=nl.number_of(metrics.get(_RTAX_MTU)),
        kind=_KIND_NAMES[kind],
        scope=_SCOPE_NAMES.get(scope, "global") if unicast else "global",
        metric=0 if family == socket.AF_INET6 and metric == _METRIC6 else metric,
        table=table if table in EGRESS_TABLES else 0,
    )


@lru_cache(MADE)
def _network(data: bytes, family: int, prefix: int) -> IPNetwork:
    dst = _address(data, family)
    return IPv4Network((dst, prefix), strict=False) if isinstance(dst, IPv4Address) else IPv6Network((dst, prefix), strict=False)


def _via(attrs: dict[int, bytes], family: int) -> IPAddress | None:
    if _RTA_VIA in attrs:
        check_size(attrs[_RTA_VIA], _VIA_FAMILY.size, "next hop")
        return _address(attrs[_RTA_VIA][_VIA_FAMILY.size :], *_VIA_FAMILY.unpack_from(attrs[_RTA_VIA]))
    return _address(attrs[_RTA_GATEWAY], family) if _RTA_GATEWAY in attrs else None


def dump_default_gateways(sock: nl.NetlinkSocket) -> frozenset[IPAddress]:
    """Next hops of the default routes of both families in the main table, whosever they are; one without a next hop counts as 0.0.0.0 or
    as ::. IPv6 has one of its own that leads nowhere."""
    found = set()
    for wanted, bits in _BITS.items():
        for message, body in sock.dump(RTM_GETROUTE, _RTMSG.pack(wanted, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)):
            if message == RTM_NEWROUTE:
                check_size(body, _RTMSG.size, "route")
                family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(body)
                if (family, prefix, table, kind) == (wanted, 0, _TABLE_MAIN, _KINDS["unicast"]):
                    hop = nl.parse_attrs(body[_RTMSG.size :]).get(_RTA_GATEWAY, bytes(bits // 8))
                    found.add(_address(hop, family))
    return frozenset(found)


def dump_foreign(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[tuple[IPv4Network, str]]:
    """Unicast IPv4 routes of all tables but the local one that are not ours and on none of our links, each with how it leads there."""
    found = sock.dump(RTM_GETROUTE, _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))
    return [route for kind, body in found if kind == RTM_NEWROUTE and (route := _foreign(body, names)) is not None]


def _foreign(body: bytes, names: dict[int, str]) -> tuple[IPv4Network, str] | None:
    check_size(body, _RTMSG.size, "route")
    family, prefix, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[_RTMSG.size :])
    table = nl.number_of(attrs.get(_RTA_TABLE), table)
    dev = names.get(nl.number_of(attrs.get(_RTA_OIF)), "")
    if table in TABLES or table == _TABLE_LOCAL:
        return None  # of routers, by our own leave
    if family != socket.AF_INET or protocol == ROUTE_PROTOCOL or kind != _KINDS["unicast"] or prefix > 32:
        return None
    if dev.startswith(PREFIX) or _RTA_DST not in attrs:
        return None
    via = f" via {_address(attrs[_RTA_GATEWAY], family)}" if _RTA_GATEWAY in attrs else ""
    return IPv4Network((_address(attrs[_RTA_DST], family), prefix), strict=False), f"route{via}" + (f" dev {dev}" if dev else "")


def table_sizes(sock: nl.NetlinkSocket) -> dict[int, int]:
    """How many routes each table of `TABLES` holds, whoever put them there; empty ones are left out."""
    return dict(Counter(table for table, _ in _in_tables(sock)))


def flush_tables(sock: nl.NetlinkSocket, kept: Collection[int]) -> None:
    """Empty those that are not `kept`."""
    sock.transact([nl.Message(RTM_DELROUTE, 0, body) for table, body in _in_tables(sock) if table not in kept])


def table_of(body: bytes) -> int:
    """The table that a route message is about."""
    check_size(body, _RTMSG.size, "route")
    return nl.number_of(nl.parse_attrs(body[_RTMSG.size :]).get(_RTA_TABLE), _RTMSG.unpack_from(body)[4])


def _in_tables(sock: nl.NetlinkSocket) -> Iterator[tuple[int, bytes]]:
    for family in _FAMILIES:
        for kind, body in sock.dump(RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            if kind == RTM_NEWROUTE and (table := table_of(body)) in TABLES and body[0] == family:  # without IPv6 all are told
                yield table, body


def forget_learnt(sock: nl.NetlinkSocket) -> None:
    """Remove what IPv6 has learnt of single destinations, path MTUs above all. Unlike that of IPv4, its sysctl `flush` leaves what has not
    expired (ten minutes, sysctl mtu_expires)."""
    found = sock.dump(RTM_GETROUTE, _RTMSG.pack(socket.AF_INET6, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, _CLONED))
    bodies = [body for kind, body in found if kind == RTM_NEWROUTE and len(body) >= _RTMSG.size]
    learnt = [(_RTMSG.unpack_from(body), nl.parse_attrs(body[_RTMSG.size :])) for body in bodies]
    sock.transact([_forgotten(attrs) for head, attrs in learnt if head[-1] & _CLONED and {_RTA_DST, _RTA_OIF} <= attrs.keys()])


def _forgotten(attrs: dict[int, bytes]) -> nl.Message:
    head = _RTMSG.pack(socket.AF_INET6, 128, 0, 0, _TABLE_MAIN, 0, 0, 0, _CLONED)
    return nl.Message(RTM_DELROUTE, 0, head + nl.attr(_RTA_DST, attrs[_RTA_DST]) + nl.attr(_RTA_OIF, attrs[_RTA_OIF]))


def look_up(sock: nl.NetlinkSocket, address: IPAddress) -> tuple[int, IPAddress | None]:
    """Interface index and source address that the kernel would use to reach `address`. OSError if there is no route."""
    family = _family(address)
    body = _RTMSG.pack(family, _BITS[family], 0, 0, 0, 0, 0, 0, 0) + nl.attr(_RTA_DST, address.packed)
    for kind, answer in sock.ask(nl.Message(RTM_GETROUTE, 0, body)):
        if kind == RTM_NEWROUTE:
            attrs = nl.parse_attrs(answer[_RTMSG.size :])
            source = attrs.get(_RTA_PREFSRC)
            return nl.number_of(attrs.get(_RTA_OIF)), _address(source, family) if source else None
    raise OSError(101, f"no route to {address}")


# --- neighbours


def put_neigh(neigh: Neigh, index: int) -> nl.Message:
    return nl.Message(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _neigh_body(neigh, index))


def del_neigh(neigh: Neigh, index: int) -> nl.Message:
    return nl.Message(RTM_DELNEIGH, 0, _neigh_body(neigh, index))


def _neigh_body(neigh: Neigh, index: int) -> bytes:
    head = NDMSG.pack(_family(neigh.address), index, NUD_PERMANENT, 0, 0)
    return head + nl.attr(NDA_DST, neigh.address.packed) + nl.attr(NDA_LLADDR, mac_bytes(neigh.mac))


def dump_neighs(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[Neigh]:
    """Permanent neighbours on the links in `names`."""
    found = [row for family in _FAMILIES for row in sock.dump(RTM_GETNEIGH, NDMSG.pack(family, 0, 0, 0, 0))]
    return [neigh for kind, body in found if kind == RTM_NEWNEIGH and (neigh := decode_neigh(body, names)) is not None]


def decode_neigh(body: bytes, names: dict[int, str]) -> Neigh | None:
    check_size(body, NDMSG.size, "neighbour")
    family, index, state, _, _ = NDMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[NDMSG.size :])
    if index not in names or not state & NUD_PERMANENT or NDA_DST not in attrs or NDA_LLADDR not in attrs:
        return None
    return Neigh(names[index], _address(attrs[NDA_DST], family), attrs[NDA_LLADDR].hex(":"))


def neighbour_index(body: bytes) -> int | None:
    """Interface index of a neighbour or FDB message; None for what plait never writes: multicast, which the kernel makes itself (NOARP)."""
    check_size(body, NDMSG.size, "neighbour")
    family, index, state, _, _ = NDMSG.unpack_from(body)
    written = family == socket.AF_BRIDGE or (family in _FAMILIES and not state & NUD_NOARP)
    return index if written else None
