# SPDX-License-Identifier: Apache-2.0
"""Rules of routing <-> rtnetlink messages, and what is left in plait's own tables.

Sources: ip-rule(8), include/uapi/linux/fib_rules.h; the protocol of a rule since Linux 4.17.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Network, IPv6Network

from plait.kernel.linux import netlink as nl
from plait.model.addr import IPNetwork
from plait.model.objects import ROUTE_PROTOCOL
from plait.model.routing import Rule

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_HEAD = struct.Struct("=BBBBBBBBI")
"""struct fib_rule_hdr: family, lengths of destination and source, tos, table, two reserved, action, flags."""
_FRA_DST, _FRA_SRC, _FRA_PRIORITY, _FRA_MARK, _FRA_SUPPRESS, _FRA_TABLE, _FRA_PROTOCOL = 1, 2, 6, 10, 14, 15, 21
_TO_TABLE, _UNREACHABLE = 1, 7
_NO_SUPPRESSION = 0xFFFFFFFF
_TABLE_COMPAT = 252
"""Stands in the header's one byte for a table whose number is greater."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_BYTES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}


def put_rule(rule: Rule) -> nl.Message:
    """EEXIST where it is there already: the kernel would take it twice."""
    return nl.Message(RTM_NEWRULE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, _body(rule))


def del_rule(rule: Rule) -> nl.Message:
    return nl.Message(RTM_DELRULE, 0, _body(rule))


def _body(rule: Rule) -> bytes:
    action = _TO_TABLE if rule.table else _UNREACHABLE
    table = rule.table if rule.table < 256 else _TABLE_COMPAT
    to = rule.dst.prefixlen if rule.dst is not None else 0
    parts = [_HEAD.pack(_FAMILIES[rule.source.version], to, rule.source.prefixlen, 0, table, 0, 0, action, 0)]
    parts.append(nl.attr_u32(_FRA_PRIORITY, rule.priority))
    if rule.source.prefixlen:
        parts.append(nl.attr(_FRA_SRC, rule.source.network_address.packed))
    if rule.mark:
        parts.append(nl.attr_u32(_FRA_MARK, rule.mark))
    if rule.dst is not None:
        parts.append(nl.attr(_FRA_DST, rule.dst.network_address.packed))
    if rule.table:
        parts.append(nl.attr_u32(_FRA_TABLE, rule.table))
    if rule.specific:
        parts.append(nl.attr_u32(_FRA_SUPPRESS, 0))
    return b"".join((*parts, nl.attr(_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))))


def dump_rules(sock: nl.NetlinkSocket) -> list[Rule]:
    """Those of our protocol, of both families; none where the kernel has no rules at all (CONFIG_IP_MULTIPLE_TABLES and IPV6's)."""
    found = [row for family in _BYTES for row in _dumped(sock, family)]
    return [rule for kind, body in found if kind == RTM_NEWRULE and (rule := decode_rule(body)) is not None]


def _dumped(sock: nl.NetlinkSocket, family: int) -> list[tuple[int, bytes]]:
    try:
        return sock.dump(RTM_GETRULE, _HEAD.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return []
        raise


def decode_rule(body: bytes) -> Rule | None:
    """None for one that is not ours."""
    if len(body) < _HEAD.size:
        raise nl.NetlinkParseError(f"rule message of {len(body)} bytes is too short")
    family, to, source, _, table, _, _, action, _ = _HEAD.unpack_from(body)
    attrs = nl.parse_attrs(body[_HEAD.size :])
    if family not in _BYTES or attrs.get(_FRA_PROTOCOL) != bytes([ROUTE_PROTOCOL]) or action not in (_TO_TABLE, _UNREACHABLE):
        return None
    return Rule(
        priority=nl.number_of(attrs.get(_FRA_PRIORITY)),
        source=_network(attrs.get(_FRA_SRC, bytes(_BYTES[family])), source, family),
        table=nl.number_of(attrs.get(_FRA_TABLE), table) if action == _TO_TABLE else 0,
        dst=_network(attrs[_FRA_DST], to, family) if _FRA_DST in attrs else None,
        specific=nl.number_of(attrs.get(_FRA_SUPPRESS), _NO_SUPPRESSION) == 0,
        mark=nl.number_of(attrs.get(_FRA_MARK)),
    )


def _network(packed: bytes, length: int, family: int) -> IPNetwork:
    if len(packed) != _BYTES[family] or length > 8 * len(packed):
        raise nl.NetlinkParseError(f"a rule for {len(packed)} bytes of address, {length} bits of them")
    return (IPv4Network if family == socket.AF_INET else IPv6Network)((packed, length), strict=False)
