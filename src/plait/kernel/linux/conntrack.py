# SPDX-License-Identifier: Apache-2.0
"""Rows of the kernel's table of connections (nf_conntrack): those to one port of this host, and their end.

The kernel is asked for the rows of one port (since Linux 5.8; before, it tells all of them), so that a table of a million costs no million
rows. It walks over the whole table all the same, 3.4 ms for 262,144 buckets (measured): of many ports all rows are taken at once.
Sources: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import ip_address

from plait.kernel.linux import netlink as nl
from plait.model.addr import IPAddress, Protocol
from plait.model.flows import Flow, PortRule

_GET, _DELETE = 0x101, 0x102
"""NFNL_SUBSYS_CTNETLINK << 8, with IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE."""
_NFGENMSG = struct.Struct("=BBH")
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _FILTER = 1, 2, 3, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
"""CTA_IP_V4_SRC and CTA_IP_V6_SRC, CTA_IP_V4_DST and CTA_IP_V6_DST."""
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_BY_ORIG, _BY_NUMBER, _BY_DST_PORT = 1, 1 << 3, 1 << 5
"""CTA_FILTER_ORIG_FLAGS, and CTA_FILTER_FLAG(CTA_PROTO_NUM), …(CTA_PROTO_DST_PORT)."""
_DST_NAT = 1 << 5
"""IPS_DST_NAT"""
_NUMBERS: dict[Protocol, int] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_Port = tuple[Protocol, int]
_APART = 4
"""Up to so many ports are asked for one by one."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def forget_flows(rules: Iterable[PortRule], local: Callable[[], frozenset[IPAddress]]) -> int:
    """Forget those that are stale by any of the rules; returns how many. `local` tells the host's own addresses, and is asked only if there
    are any rows. One that ends by itself meanwhile is no error. OSError."""
    by_version: dict[int, dict[_Port, list[PortRule]]] = {}
    for rule in rules:
        by_version.setdefault(rule.version, {}).setdefault((rule.proto, rule.port), []).append(rule)
    with contextlib.closing(nl.NetlinkSocket(nl.NETLINK_NETFILTER)) as sock:
        flows = [(found[f.proto, f.port], f) for version, found in by_version.items() for f in flows_to(sock, version, found)]
        here = local() if flows else frozenset()
        stale = [flow for found, flow in flows if any(rule.stale(flow, here) for rule in found)]
        replies = sock.transact([nl.Message(_DELETE, 0, _NFGENMSG.pack(_FAMILIES[f.to.version], 0, 0) + f.key) for f in stale])
    refused = [reply.errno for reply in replies if reply.errno not in (0, errno.ENOENT)]
    if refused:
        raise OSError(refused[0], "a tracked connection cannot be forgotten")
    return len(stale)


def flows_to(sock: nl.NetlinkSocket, version: int, ports: Collection[_Port]) -> list[Flow]:
    """All of a family whose first packet went to one of these ports, of whatever host."""
    head = _NFGENMSG.pack(_FAMILIES[version], 0, 0)
    bodies = [head + _narrowed(*port) for port in ports] if len(ports) <= _APART else [head]
    flows = [decode_flow(row) for body in bodies for _, row in sock.dump(_GET, body)]
    return [flow for flow in flows if flow is not None and (flow.proto, flow.port) in ports]


def _narrowed(proto: Protocol, port: int) -> bytes:
    """What has the kernel tell only rows of one port."""
    wanted = nl.nested(_TUPLE_PROTO, nl.attr_u8(_PROTO_NUM, _NUMBERS[proto]), nl.attr_u16be(_DST_PORT, port))
    flags = nl.nested(_FILTER, nl.attr_u32(_BY_ORIG, _BY_NUMBER | _BY_DST_PORT))
    return nl.nested(_TUPLE_ORIG, wanted) + flags


def decode_flow(body: bytes) -> Flow | None:
    """None for what has no ports. NetlinkParseError."""
    attrs = nl.parse_attrs(body[_NFGENMSG.size :])
    if _TUPLE_ORIG not in attrs or _TUPLE_REPLY not in attrs:
        raise nl.NetlinkParseError("a tracked connection has no two directions")
    source, to, number, _, port = _tuple(attrs[_TUPLE_ORIG])
    inside, _, _, inside_port, _ = _tuple(attrs[_TUPLE_REPLY])
    if number not in _NAMES:
        return None
    status = int.from_bytes(attrs.get(_STATUS, b"")[:4], "big")
    key = b"".join(nl.attr(kind | nested, attrs[kind]) for kind, nested in ((_TUPLE_ORIG, 0x8000), (_ID, 0), (_ZONE, 0)) if kind in attrs)
    return Flow(_NAMES[number], source, to, port, (inside, inside_port) if status & _DST_NAT else None, key)


def _tuple(data: bytes) -> tuple[IPAddress, IPAddress, int, int, int]:
    """Source, destination, protocol, source port, destination port (0 if there is none)."""
    parts = nl.parse_attrs(data)
    addresses, proto = nl.parse_attrs(parts.get(_TUPLE_IP, b"")), nl.parse_attrs(parts.get(_TUPLE_PROTO, b""))
    ports = (int.from_bytes(proto.get(kind, b"\0\0"), "big") for kind in (_SRC_PORT, _DST_PORT))
    return (_address(addresses, _SOURCES), _address(addresses, _DESTINATIONS), nl.number_of(proto.get(_PROTO_NUM)), *ports)  # type: ignore[return-value]


def _address(found: dict[int, bytes], kinds: Sequence[int]) -> IPAddress:
    data = next((found[kind] for kind in kinds if kind in found), b"")
    if len(data) not in (4, 16):
        raise nl.NetlinkParseError(f"a tracked connection has an address of {len(data)} bytes")
    return ip_address(data)
