# SPDX-License-Identifier: Apache-2.0
"""Addresses, routes, neighbours and FDB rows <-> rtnetlink messages.

Sources: rtnetlink(7), include/uapi/linux/{if_addr,rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.link import mac_bytes
from plait.model.objects import ROUTE_PROTOCOL, Addr, Fdb, Neigh, Route

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTR4, _ATTR4_U32 = struct.Struct("=HH"), struct.Struct("=HHI")
_NDMSG = struct.Struct("=BxxxiHBB")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RTAX_MTU, _RTNH_F_ONLINK, _TABLE_MAIN = 2, 4, 254
_KINDS = {"unicast": 1, "blackhole": 6, "unreachable": 7}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}
_SCOPES = {"global": 0, "link": 253, "host": 254}
_SCOPE_NAMES = {number: name for name, number in _SCOPES.items()}
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT, _NUD_NOARP, _NTF_SELF = 0x80, 0x40, 0x02


def _short(body: bytes, size: int, what: str) -> None:
    if len(body) < size:
        raise nl.NetlinkParseError(f"{what} message of {len(body)} bytes is too short")


def _address(data: bytes) -> IPv4Address:
    if len(data) != 4:
        raise nl.NetlinkParseError(f"an IPv4 address of {len(data)} bytes")
    return IPv4Address(data)


# --- addresses


def put_addr(addr: Addr, index: int) -> nl.Message:
    return nl.Message(RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _addr_body(addr, index))


def del_addr(addr: Addr, index: int) -> nl.Message:
    return nl.Message(RTM_DELADDR, 0, _addr_body(addr, index))


def _addr_body(addr: Addr, index: int) -> bytes:
    packed = addr.address.ip.packed
    return (
        _IFADDR.pack(socket.AF_INET, addr.address.network.prefixlen, 0, 0, index)
        + nl.attr(_IFA_LOCAL, packed)
        + nl.attr(_IFA_ADDRESS, packed)
    )


def dump_addrs(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[Addr]:
    """IPv4 addresses on the links in `names` (index -> name)."""
    found = sock.dump(RTM_GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0))
    return [addr for kind, body in found if kind == RTM_NEWADDR and (addr := decode_addr(body, names)) is not None]


def decode_addr(body: bytes, names: dict[int, str]) -> Addr | None:
    _short(body, _IFADDR.size, "address")
    _, prefix, _, _, index = _IFADDR.unpack_from(body)
    attrs = nl.parse_attrs(body[_IFADDR.size :])
    local = attrs.get(_IFA_LOCAL, attrs.get(_IFA_ADDRESS))
    if index not in names or local is None or prefix > 32:
        return None
    return Addr(names[index], IPv4Interface((_address(local), prefix)))


# --- routes


def put_route(route: Route, index: int) -> nl.Message:
    return nl.Message(RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _route_body(route, index))


def del_route(route: Route, index: int) -> nl.Message:
    return nl.Message(RTM_DELROUTE, 0, _route_body(route, index))


def _route_body(route: Route, index: int) -> bytes:
    flags = _RTNH_F_ONLINK if route.onlink else 0
    kind, scope = _KINDS[route.kind], _SCOPES[route.scope]
    head = _RTMSG.pack(socket.AF_INET, route.dst.prefixlen, 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, scope, kind, flags)
    parts = [head, _ATTR4.pack(8, _RTA_DST), route.dst.network_address.packed]
    if index:
        parts.append(_ATTR4_U32.pack(8, _RTA_OIF, index))
    if route.via is not None:
        parts += (_ATTR4.pack(8, _RTA_GATEWAY), route.via.packed)
    if route.metric:
        parts.append(_ATTR4_U32.pack(8, _RTA_PRIORITY, route.metric))
    if route.src is not None:
        parts += (_ATTR4.pack(8, _RTA_PREFSRC), route.src.packed)
    if route.mtu:
        parts.append(nl.nested(_RTA_METRICS, nl.attr_u32(_RTAX_MTU, route.mtu)))
    return b"".join(parts)


def dump_routes(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[Route]:
    """Routes of our protocol in the main table; the kernel filters by protocol (strict checking)."""
    head = _RTMSG.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, 0, 0, 0)
    found = sock.dump(RTM_GETROUTE, head)
    return [route for kind, body in found if kind == RTM_NEWROUTE and (route := decode_route(body, names)) is not None]


def decode_route(body: bytes, names: dict[int, str]) -> Route | None:
    _short(body, _RTMSG.size, "route")
    family, prefix, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[_RTMSG.size :])
    table = nl.number_of(attrs.get(_RTA_TABLE), table)
    if family != socket.AF_INET or protocol != ROUTE_PROTOCOL or table != _TABLE_MAIN or kind not in _KIND_NAMES or prefix > 32:
        return None
    metrics = nl.parse_attrs(attrs.get(_RTA_METRICS, b""))
    oif = nl.number_of(attrs.get(_RTA_OIF))
    unicast = _KIND_NAMES[kind] == "unicast"
    return Route(
        dst=IPv4Network((_address(attrs.get(_RTA_DST, b"\0\0\0\0")), prefix), strict=False),
        dev=names.get(oif, f"if{oif}") if unicast else "",
        via=_address(attrs[_RTA_GATEWAY]) if _RTA_GATEWAY in attrs else None,
        onlink=bool(flags & _RTNH_F_ONLINK),
        src=_address(attrs[_RTA_PREFSRC]) if _RTA_PREFSRC in attrs else None,
        mtu=nl.number_of(metrics.get(_RTAX_MTU)),
        kind=_KIND_NAMES[kind],
        scope=_SCOPE_NAMES.get(scope, "global") if unicast else "global",
        metric=nl.number_of(attrs.get(_RTA_PRIORITY)),
    )


def look_up(sock: nl.NetlinkSocket, address: IPv4Address) -> tuple[int, IPv4Address | None]:
    """Interface index and source address that the kernel would use to reach `address`. OSError if there is no route."""
    body = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + nl.attr(_RTA_DST, address.packed)
    for kind, answer in sock.ask(nl.Message(RTM_GETROUTE, 0, body)):
        if kind == RTM_NEWROUTE:
            attrs = nl.parse_attrs(answer[_RTMSG.size :])
            source = attrs.get(_RTA_PREFSRC)
            return nl.number_of(attrs.get(_RTA_OIF)), _address(source) if source else None
    raise OSError(101, f"no route to {address}")


# --- neighbours and FDB rows


def put_neigh(neigh: Neigh, index: int) -> nl.Message:
    return nl.Message(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _neigh_body(neigh, index))


def del_neigh(neigh: Neigh, index: int) -> nl.Message:
    return nl.Message(RTM_DELNEIGH, 0, _neigh_body(neigh, index))


def _neigh_body(neigh: Neigh, index: int) -> bytes:
    head = _NDMSG.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    return head + nl.attr(_NDA_DST, neigh.address.packed) + nl.attr(_NDA_LLADDR, mac_bytes(neigh.mac))


def put_fdb(fdb: Fdb, index: int) -> nl.Message:
    return nl.Message(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _fdb_body(fdb, index))


def del_fdb(fdb: Fdb, index: int) -> nl.Message:
    return nl.Message(RTM_DELNEIGH, 0, _fdb_body(fdb, index))


def _fdb_body(fdb: Fdb, index: int) -> bytes:
    head = _NDMSG.pack(socket.AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
    return head + nl.attr(_NDA_LLADDR, mac_bytes(fdb.mac)) + nl.attr(_NDA_DST, fdb.dst.packed)


def dump_neighs(sock: nl.NetlinkSocket, names: dict[int, str]) -> list[Neigh]:
    """Permanent IPv4 neighbours on the links in `names`."""
    found = sock.dump(RTM_GETNEIGH, _NDMSG.pack(socket.AF_INET, 0, 0, 0, 0))
    return [neigh for kind, body in found if kind == RTM_NEWNEIGH and (neigh := decode_neigh(body, names)) is not None]


def decode_neigh(body: bytes, names: dict[int, str]) -> Neigh | None:
    _short(body, _NDMSG.size, "neighbour")
    _, index, state, _, _ = _NDMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[_NDMSG.size :])
    if index not in names or not state & _NUD_PERMANENT or _NDA_DST not in attrs or _NDA_LLADDR not in attrs:
        return None
    return Neigh(names[index], _address(attrs[_NDA_DST]), attrs[_NDA_LLADDR].hex(":"))


def neighbour_index(body: bytes) -> int | None:
    """Interface index of a neighbour or FDB message; None for what plait never writes: IPv6, and multicast, which the kernel makes
    itself (NOARP)."""
    _short(body, _NDMSG.size, "neighbour")
    family, index, state, _, _ = _NDMSG.unpack_from(body)
    written = family == socket.AF_BRIDGE or (family == socket.AF_INET and not state & _NUD_NOARP)
    return index if written else None


def dump_fdbs(sock: nl.NetlinkSocket, index: int, name: str) -> list[Fdb]:
    """Unicast FDB rows with a destination of one VXLAN device."""
    body = _NDMSG.pack(socket.AF_BRIDGE, index, 0, 0, 0)
    found = sock.dump(RTM_GETNEIGH, body)
    return [row for kind, content in found if kind == RTM_NEWNEIGH and (row := decode_fdb(content, index, name)) is not None]


def decode_fdb(body: bytes, index: int, name: str) -> Fdb | None:
    _short(body, _NDMSG.size, "FDB")
    _, at, _, _, _ = _NDMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[_NDMSG.size :])
    if at != index or len(attrs.get(_NDA_DST, b"")) != 4 or _NDA_LLADDR not in attrs:
        return None
    return Fdb(name, attrs[_NDA_LLADDR].hex(":"), IPv4Address(attrs[_NDA_DST]))
