# SPDX-License-Identifier: Apache-2.0
"""Forwarding rows of VXLAN devices and of bridges <-> rtnetlink messages.

Sources: rtnetlink(7), bridge(8), include/uapi/linux/neighbour.h. A VXLAN device's rows are its own (NTF_SELF) and permanent; those of a
bridge are held for it by their port (NTF_MASTER), and static ones read back as NUD_NOARP without NUD_PERMANENT, which the bridge's and
its ports' own addresses have.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import ip_address

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.link import mac_bytes
from plait.kernel.linux.route import (
    MADE,
    NDA_DST,
    NDA_LLADDR,
    NDMSG,
    NUD_NOARP,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    check_size,
)
from plait.model.addr import IPAddress
from plait.model.objects import NO_MAC, BridgeFdb, Fdb, Flood

_NTF_SELF, _NTF_MASTER, _NDA_MASTER = 0x02, 0x04, 9


def put_fdb(fdb: Fdb, index: int) -> nl.Message:
    return nl.Message(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _outer(fdb.mac, fdb.dst, index))


def del_fdb(fdb: Fdb, index: int) -> nl.Message:
    return nl.Message(RTM_DELNEIGH, 0, _outer(fdb.mac, fdb.dst, index))


def put_flood(flood: Flood, index: int) -> nl.Message:
    """One destination more beside those that are there."""
    return nl.Message(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_APPEND, _outer(NO_MAC, flood.dst, index))


def del_flood(flood: Flood, index: int) -> nl.Message:
    return nl.Message(RTM_DELNEIGH, 0, _outer(NO_MAC, flood.dst, index))


def _outer(mac: str, dst: IPAddress, index: int) -> bytes:
    head = NDMSG.pack(socket.AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, _NTF_SELF, 0)
    return head + nl.attr(NDA_LLADDR, mac_bytes(mac)) + nl.attr(NDA_DST, dst.packed)


def put_bridge_fdb(row: BridgeFdb, port: int) -> nl.Message:
    return nl.Message(RTM_NEWNEIGH, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _inner(row, port))


def del_bridge_fdb(row: BridgeFdb, port: int) -> nl.Message:
    return nl.Message(RTM_DELNEIGH, 0, _inner(row, port))


def _inner(row: BridgeFdb, port: int) -> bytes:
    return NDMSG.pack(socket.AF_BRIDGE, port, NUD_NOARP, _NTF_MASTER, 0) + nl.attr(NDA_LLADDR, mac_bytes(row.mac))


def dump_fdbs(sock: nl.NetlinkSocket, index: int, name: str) -> list[Fdb | Flood]:
    """Unicast FDB rows with a destination of one VXLAN device, and where it floods to."""
    body = NDMSG.pack(socket.AF_BRIDGE, index, 0, 0, 0)
    found = sock.dump(RTM_GETNEIGH, body)
    return [row for kind, content in found if kind == RTM_NEWNEIGH and (row := decode_fdb(content, index, name)) is not None]


def decode_fdb(body: bytes, index: int, name: str) -> Fdb | Flood | None:
    check_size(body, NDMSG.size, "FDB")
    _, at, _, _, _ = NDMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[NDMSG.size :])
    if at != index or len(attrs.get(NDA_DST, b"")) not in (4, 16) or NDA_LLADDR not in attrs:
        return None
    mac, dst = attrs[NDA_LLADDR].hex(":"), _destination(attrs[NDA_DST])
    return Flood(name, dst) if mac == NO_MAC else Fdb(name, mac, dst)


@lru_cache(MADE)
def _destination(data: bytes) -> IPAddress:
    return ip_address(data)


def dump_bridge_fdbs(sock: nl.NetlinkSocket, index: int, names: dict[int, str]) -> list[BridgeFdb]:
    """The static rows of the bridge with this index; `names` has it and its ports."""
    body = NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0) + nl.attr_u32(_NDA_MASTER, index)
    found = sock.dump(RTM_GETNEIGH, body)
    return [row for kind, content in found if kind == RTM_NEWNEIGH and (row := decode_bridge_fdb(content, index, names)) is not None]


def decode_bridge_fdb(body: bytes, bridge: int, names: dict[int, str]) -> BridgeFdb | None:
    check_size(body, NDMSG.size, "FDB")
    _, port, _, _, _ = NDMSG.unpack_from(body)
    attrs = nl.parse_attrs(body[NDMSG.size :])
    if nl.number_of(attrs.get(_NDA_MASTER)) != bridge or not is_static_row(body) or port not in names or NDA_LLADDR not in attrs:
        return None
    return BridgeFdb(names[bridge], attrs[NDA_LLADDR].hex(":"), names[port])


def is_static_row(body: bytes) -> bool:
    """Whether an FDB message of a bridge is of a static row, neither learnt nor an address of its own."""
    check_size(body, NDMSG.size, "FDB")
    family, _, state, _, _ = NDMSG.unpack_from(body)
    return bool(family == socket.AF_BRIDGE and state & NUD_NOARP and not state & NUD_PERMANENT)
