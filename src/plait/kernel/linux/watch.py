# SPDX-License-Identifier: Apache-2.0
"""Kernel events as words: rtnetlink and nftables multicast groups -> "link", "addr", "route", "neigh", "tc", "nft",
"overrun".

Only that something changed matters: the pass that follows reads the truth. Words that wait already are not repeated. What the
kernel learns by itself of neighbours on containers' links is no event, nor what routers announce: a busy host has much a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator

from plait.kernel.linux.fdb import is_static_row
from plait.kernel.linux.netlink import NETLINK_NETFILTER, NetlinkParseError, parse_messages
from plait.kernel.linux.route import neighbour_index, table_of
from plait.kernel.linux.tc import link_index
from plait.model.objects import PREFIX
from plait.model.routing import TABLES

_RTMGRP_LINK, _RTMGRP_NEIGH, _RTMGRP_TC, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x4, 0x8, 0x10, 0x40
_RTMGRP_IPV4_RULE, _RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE, _RTMGRP_IPV6_RULE = 0x80, 0x100, 0x400, 0x40000
_ROUTE_GROUPS = (
    _RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_TC | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE
) | (_RTMGRP_IPV4_RULE | _RTMGRP_IPV6_RULE)
_NFNLGRP_NFTABLES = 7
_RECV_BYTES = 64 * 1024
_READS_AT_ONCE = 64
_QDISCS = (36, 37)
"""Those of the host's own link, which nobody changes often, are kept there too (`classes.py`)."""
_ROUTE_WORDS = {
    16: "link",
    17: "link",
    20: "addr",
    21: "addr",
    24: "route",
    25: "route",
    28: "neigh",
    29: "neigh",
    32: "route",
    33: "route",
    36: "tc",
    37: "tc",
    44: "tc",
    45: "tc",
}


_ROUTES = (24, 25)
"""New and deleted ones; what routers announce is nobody's here."""


def _open(protocol: int, groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((0, groups))
    return sock


def read_words(sock: socket.socket, nft: bool) -> set[str]:
    """What the datagrams that wait on `sock` are about. A full buffer is "overrun": something was missed."""
    words: set[str] = set()
    for _ in range(_READS_AT_ONCE):
        try:
            data = sock.recv(_RECV_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            words.add("overrun")
            continue
        with contextlib.suppress(NetlinkParseError):
            words |= {"nft" if nft else _word(kind, body) for kind, _, _, body in parse_messages(data)}
    return words - {""}


def _word(kind: int, body: bytes) -> str:
    """The word for one rtnetlink message; "" for what cannot concern plait. NetlinkParseError if it is too short."""
    word = _ROUTE_WORDS.get(kind, "")
    if word == "tc":
        return word if kind in _QDISCS or _name(link_index(body)).startswith(PREFIX) else ""
    if kind in _ROUTES and table_of(body) in TABLES:
        return ""
    return "" if word == "neigh" and not _is_kept(body) else word


def _is_kept(body: bytes) -> bool:
    """Whether plait keeps such neighbours or FDB rows on the link (on an endpoint's, where the kernel learns, only static ones of the
    bridge)."""
    name = _name(neighbour_index(body))
    return name.startswith(PREFIX) and (not name.startswith(f"{PREFIX}e") or is_static_row(body))


def _name(index: int | None) -> str:
    """Of a link, "" if it has gone meanwhile: its own event says so."""
    try:
        return socket.if_indextoname(index) if index is not None else ""
    except OSError:
        return ""


async def watch_kernel() -> AsyncIterator[str]:
    """Yield a word whenever something of its kind changed in this namespace. Never returns."""
    loop = asyncio.get_running_loop()
    pending: set[str] = set()
    wake = asyncio.Event()
    route = _open(socket.NETLINK_ROUTE, _ROUTE_GROUPS)
    nft = _open(NETLINK_NETFILTER, 1 << (_NFNLGRP_NFTABLES - 1))

    def on_readable(sock: socket.socket, is_nft: bool) -> None:
        pending.update(read_words(sock, is_nft))
        if pending:
            wake.set()

    loop.add_reader(route, on_readable, route, False)
    loop.add_reader(nft, on_readable, nft, True)
    try:
        while True:
            await wake.wait()
            wake.clear()
            words = sorted(pending)
            pending.clear()
            for word in words:
                yield word
    finally:
        for sock in (route, nft):
            loop.remove_reader(sock)
            sock.close()
