# SPDX-License-Identifier: Apache-2.0
"""How full the kernel's two tables of neighbours are. All namespaces share them, and their limits are those of the whole machine.

Data in: RTM_GETNEIGHTBL (rtnetlink(7), include/uapi/linux/neighbour.h). Data out: one `NeighTable` per family. Permanent entries are
exempt from the limit (kernel, net/core/neighbour.c: neigh_alloc), but the kernel's count has them too: those of the namespace that
asks are taken off, those of others cannot be told from the rest.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.route import NDMSG, NUD_PERMANENT, RTM_GETNEIGH, RTM_NEWNEIGH

RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL = 64, 66
_NDTMSG = struct.Struct("=BBH")
_NDTA_THRESH3, _NDTA_CONFIG, _NDTA_STATS = 4, 5, 7
_CONFIG = struct.Struct("=HHI")
"""The first members of struct ndt_config: key_len, entry_size, entries."""
_FORCED_GC, _TABLE_FULLS = 9, 10
"""Of struct ndt_stats, 64 bits each."""
_FAMILIES: Mapping[int, Literal["IPv4", "IPv6"]] = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


@dataclass(frozen=True, slots=True)
class NeighTable:
    """`entries` that count against `limit` (gc_thresh3), at most. Since the machine started: `squeezed`, how often an entry found the table
    at half of its limit (gc_thresh2) or more, so that old ones had to go; `refused`, how often there was no room."""

    family: Literal["IPv4", "IPv6"]
    entries: int
    limit: int
    squeezed: int
    refused: int


def neigh_tables() -> list[NeighTable]:
    """Both, or those that the kernel has. OSError. Blocks for about a millisecond."""
    with contextlib.closing(nl.NetlinkSocket()) as sock:
        found = [
            table for kind, body in sock.dump(RTM_GETNEIGHTBL, _NDTMSG.pack(0, 0, 0)) if (table := decode_table(kind, body)) is not None
        ]
        return [_without(table, _permanent(sock, table.family)) for table in found]


def decode_table(kind: int, body: bytes) -> NeighTable | None:
    """One message of the dump; None for one that is of a single link's parameters, or of another family."""
    if kind != RTM_NEWNEIGHTBL or len(body) < _NDTMSG.size:
        return None
    family = _FAMILIES.get(body[0])
    attrs = nl.parse_attrs(body[_NDTMSG.size :])
    config, stats = attrs.get(_NDTA_CONFIG, b""), attrs.get(_NDTA_STATS, b"")
    if family is None or len(config) < _CONFIG.size:
        return None
    squeezed, refused = (nl.number_of(stats[8 * at : 8 * at + 8]) for at in (_FORCED_GC, _TABLE_FULLS))
    return NeighTable(family, _CONFIG.unpack_from(config)[2], nl.number_of(attrs.get(_NDTA_THRESH3)), squeezed, refused)


def _permanent(sock: nl.NetlinkSocket, family: str) -> int:
    number = socket.AF_INET if family == "IPv4" else socket.AF_INET6
    rows = sock.dump(RTM_GETNEIGH, NDMSG.pack(number, 0, 0, 0, 0))
    return sum(1 for kind, body in rows if kind == RTM_NEWNEIGH and NDMSG.unpack_from(body)[2] & NUD_PERMANENT)


def _without(table: NeighTable, permanent: int) -> NeighTable:
    return replace(table, entries=max(0, table.entries - permanent))
