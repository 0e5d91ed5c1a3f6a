# SPDX-License-Identifier: Apache-2.0
"""What a container on a link of the host (macvlan, ipvlan) sends under addresses that are not its own is dropped and counted, by a table of
nft in its own namespace, at what leaves by that link: nothing of such a link lies on the host, and at its parent nobody can tell whose a
frame with another MAC is.

The table `netdev` is called as the link's alias; its one chain at the hook has the digest of what it judges by in its name, so that the
kernel tells in one answer what is in force. Chains there see packet sockets that pass queueing disciplines by (PACKET_QDISC_BYPASS); what
leaves by AF_XDP, and whoever may change nft in the container (CAP_NET_ADMIN), they do not stop (measured on Linux 6.18).

Sources: include/uapi/linux/netfilter/nf_tables.h, nft(8) (hook egress, Linux 5.16).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable, Iterator

from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.inside import opened
from plait.kernel.linux.netns import inside
from plait.kernel.linux.nft import NftError, open_nft
from plait.model.hostlinks import ChildGuard, Key

KIND = "child-guard"
_GET_CHAIN, _GET_COUNTER = 0xA04, 0xA13
"""NFNL_SUBSYS_NFTABLES << 8, with NFT_MSG_GETCHAIN and NFT_MSG_GETOBJ."""
_NFGENMSG, _NETDEV = struct.Struct("=BBH"), 5
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK = 1, 3, 4
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA, _COUNTER, _PACKETS = 1, 2, 3, 4, 1, 2
_NAMED = "own-"


def put(guard: ChildGuard) -> None:
    """Judge what leaves by the link from now on, in place of what did. Idempotent. OSError: ENODEV if the link is not there."""
    with opened(guard.netns) as (fd, there):
        name = next((facts.name for facts in links.dump_facts(there).values() if facts.alias == guard.dev), "")
        if not name:
            raise OSError(errno.ENODEV, f"no link with the alias {guard.dev}")
        _run(fd, [*(_emptied(guard.dev) if read([guard.key]) else _bare(guard.dev)), *_script(guard, name)])


def remove(guard: ChildGuard) -> None:
    """Judge nothing any more. Idempotent. OSError ENOENT if the namespace is not there."""
    with opened(guard.netns) as (fd, _):
        _run(fd, _emptied(guard.dev))


def read(probe: Iterable[Key]) -> list[ChildGuard]:
    """Those that `probe` asks for."""
    found: list[ChildGuard] = []
    for kind, dev, *place in probe:
        if kind == KIND:
            with contextlib.suppress(OSError), _netfilter(place[0]) as sock:
                rows = (nl.parse_attrs(body[_NFGENMSG.size :]) for _, body in sock.dump(_GET_CHAIN, _NFGENMSG.pack(_NETDEV, 0, 0)))
                named = (nl.text_of(row[_CHAIN_NAME]) for row in rows if _is_of(row.get(_CHAIN_TABLE), dev) and _CHAIN_HOOK in row)
                found += [ChildGuard(dev, place[0], name.removeprefix(_NAMED)) for name in named]
    return found


def counted(guards: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Packets that were dropped of these (link, namespace), by link; those that are not there are left out."""
    found: dict[str, int] = {}
    for dev, netns in guards:
        with contextlib.suppress(OSError), _netfilter(netns) as sock:
            asked = nl.attr_text(_OBJ_TABLE, dev) + nl.attr_text(_OBJ_NAME, "forged") + nl.attr(_OBJ_TYPE, struct.pack("!I", _COUNTER))
            for _, body in sock.ask(nl.Message(_GET_COUNTER, 0, _NFGENMSG.pack(_NETDEV, 0, 0) + asked)):
                data = nl.parse_attrs(nl.parse_attrs(body[_NFGENMSG.size :]).get(_OBJ_DATA, b""))
                found[dev] = int.from_bytes(data.get(_PACKETS, b""), "big")
    return found


def _is_of(table: bytes | None, dev: str) -> bool:
    return table is not None and nl.text_of(table) == dev


@contextlib.contextmanager
def _netfilter(netns: str) -> Iterator[nl.NetlinkSocket]:
    """A netfilter socket that lives in the namespace."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(fd):
            there = nl.NetlinkSocket(nl.NETLINK_NETFILTER)
        with contextlib.closing(there):
            yield there
    finally:
        os.close(fd)


def _bare(dev: str) -> list[str]:
    """The table without rules, where it has no chain at the hook: to delete one takes 15 ms (measured)."""
    return [f"add table netdev {dev}", f"flush table netdev {dev}"]


def _emptied(dev: str) -> list[str]:
    return [f"add table netdev {dev}", f"delete table netdev {dev}"]


def _script(guard: ChildGuard, name: str) -> list[str]:
    """`forged` and `strangers` are what the rules lead to."""
    table, chain = f"netdev {guard.dev}", f"{_NAMED}{guard.digest}"
    return [
        f"add table {table}",
        f"add counter {table} forged",
        f"add chain {table} forged",
        f'add rule {table} forged counter name "forged" drop',
        f"add chain {table} strangers",
        *(f"add rule {table} strangers {rule}" for rule in guard.strangers),
        f'add chain {table} {chain} {{ type filter hook egress device "{name}" priority filter; policy accept; }}',
        *(f"add rule {table} {chain} {rule}" for rule in guard.rules),
    ]


def _run(fd: int, lines: Iterable[str]) -> None:
    with inside(fd):
        try:
            open_nft().run("".join(f"{line}\n" for line in lines))
        except NftError as error:
            raise OSError(errno.EINVAL, str(error)) from error
