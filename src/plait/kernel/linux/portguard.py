# SPDX-License-Identifier: Apache-2.0
"""What a container on a port of Open vSwitch sends under addresses that are not its own is dropped and counted, by an eBPF program (XDP) at
its link: the switch's userspace datapath reads the link by a packet socket, before any chain of nft sees what came in.

In generic mode (Linux 4.12), for that runs before packet sockets and leaves the link as it is; in native mode the container's end would
lose its offloads. The program has the addresses as constants, and one counter in a map; it lives at the link as long as that. Tagged frames
are forged: a switch takes those of priority alone for untagged ones.

Sources: include/uapi/linux/{bpf,if_link}.h, ovs-vswitchd.conf.db(5) (VLAN access ports), RFC 4861, RFC 6980, RFC 3590.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from plait.kernel.linux import bpf
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.devices import index_of
from plait.model.addr import IPAddress, link_local
from plait.model.hostlinks import PortGuard

_IFLA_XDP, _XDP_FD, _XDP_FLAGS = 43, 1, 3
_GENERIC = 2
_KEY, _ZERO = bytes(4), bytes(8)
_NAMED, _MAP_NAME = "plg", "plait_forged"


def put(sock: nl.NetlinkSocket, index: int, guard: PortGuard) -> None:
    """Judge what comes in by the link from now on, in place of what did. Idempotent. OSError."""
    with contextlib.ExitStack() as stack:
        table = bpf.create_hash(len(_KEY), len(_ZERO), 1, _MAP_NAME)
        stack.callback(os.close, table)
        bpf.put(table, _KEY, _ZERO)
        program = bpf.load_xdp(_program(table, guard.mac, guard.own), f"{_NAMED}{_RELEASE}{guard.digest}")
        stack.callback(os.close, program)
        _set(sock, index, program)


def remove(sock: nl.NetlinkSocket, index: int) -> None:
    """Judge nothing any more. OSError ENODEV for a link that is not there."""
    _set(sock, index, -1)


def _set(sock: nl.NetlinkSocket, index: int, program: int) -> None:
    told = nl.nested(_IFLA_XDP, nl.attr(_XDP_FD, struct.pack("=i", program)), nl.attr_u32(_XDP_FLAGS, _GENERIC))
    (reply,) = sock.transact([nl.Message(links.RTM_NEWLINK, 0, links.head(index) + told)])
    if reply.errno:
        raise OSError(reply.errno, reply.text or os.strerror(reply.errno))


def held(programs: Mapping[str, int]) -> list[PortGuard]:
    """Those at links, by whose names the ids of `programs` are given. One of another release stands for nothing."""
    found = {dev: name for dev, number in programs.items() for name, _ in _ours(number)}
    begin = _NAMED + _RELEASE
    return [PortGuard(dev, name.removeprefix(begin) if name.startswith(begin) else "") for dev, name in found.items()]


def counted(sock: nl.NetlinkSocket, devs: Iterable[str]) -> dict[str, int]:
    """Packets that were dropped at these links; those without a program are left out."""
    found: dict[str, int] = {}
    for dev in devs:
        with contextlib.suppress(OSError):  # it has gone
            for kind, body in sock.ask(nl.Message(links.RTM_GETLINK, 0, links.get_body(index_of(dev)))):
                if kind == links.RTM_NEWLINK:
                    found.update((dev, packets) for _, packets in _ours(links.xdp_program(body)))
    return found


def _ours(number: int) -> Iterator[tuple[str, int]]:
    """Name of the program with this id and what it has counted, if it is one of ours and there."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        if not number:
            return
        program = bpf.opened(number)
        stack.callback(os.close, program)
        name, maps = bpf.named(program)
        if name.startswith(_NAMED) and maps:
            table = bpf.opened_map(maps[0])
            stack.callback(os.close, table)
            yield name, sum(int.from_bytes(value, sys.byteorder) for _, value in bpf.entries(table, len(_KEY), len(_ZERO), 1))


# --- the program

_R0, _R1, _R2, _R4, _DATA, _END, _STACK = 0, 1, 2, 4, 6, 7, 10
_BYTE, _HALF, _WORD = 0x10, 0x08, 0x00
_LOAD, _STORE_IMM, _MOV, _MOV_IMM, _ADD_IMM = 0x61, 0x62, 0xBF, 0xB7, 0x07
_IS, _IS_NOT, _MORE, _GO = 0x16, 0x56, 0x2D, 0x05
"""Jumps; the first two compare 32 bits (Linux 5.1)."""
_LOAD_MAP, _CALL, _EXIT, _ATOMIC = 0x18, 0x85, 0x95, 0xDB
_LOOK_UP, _DROP, _PASS = 1, 1, 2
_SOURCE4, _SENDER4, _SOURCE6, _TARGET6 = 26, 28, 22, 62
"""Where a frame has the addresses that it says: of IPv4, ARP, IPv6, and that which a neighbour advertisement is about."""
_NEXT6, _BEHIND6 = 20, 54
_HOP, _ROUTING, _FRAGMENT, _ICMP6, _OPTIONS = 0, 43, 44, 58, 60
_EXTENSIONS = (_ICMP6, _HOP, _ROUTING, _FRAGMENT, _OPTIONS)
_ADVERT, _ROUTER, _REDIRECT, _SOLICIT, _GROUPS = 136, 134, 137, 135, (131, 132, 143)
Step = bytes | str | tuple[int, int, int, int, str]
"""Instructions, a place, or a jump (code, register, other register, value, to where)."""


def _op(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = to | of << 4 if sys.byteorder == "little" else to << 4 | of
    return struct.pack("=BBhi", code, registers, offset, value)


def _reach(end: int) -> list[Step]:
    """What is shorter is no packet of its kind."""
    return [_op(_MOV, _R4, _DATA), _op(_ADD_IMM, _R4, value=end), (_MORE, _R4, _END, 0, "forged")]


def _read(at: int, width: int = _BYTE) -> bytes:
    return _op(_LOAD | width, _R0, _DATA, at)


def _among(values: Iterable[int], to: str) -> list[Step]:
    return [(_IS, _R0, 0, value, to) for value in values]


def _number(part: bytes) -> int:
    """As this machine reads it, where 32 bits are compared with."""
    return int.from_bytes(part, sys.byteorder, signed=len(part) == 4)


def _half(number: int) -> int:
    return socket.htons(number)


def _go(to: str) -> Step:
    return _GO, 0, 0, 0, to


def _program(table: int, mac: str, own: Iterable[IPAddress]) -> bytes:
    raw, own = links.mac_bytes(mac), list(own)
    four = [address.packed for address in own if isinstance(address, IPv4Address)]
    six = [address.packed for address in (*own, link_local(mac)) if isinstance(address, IPv6Address)]
    kinds = {0x0800: "ipv4", 0x0806: "arp", 0x86DD: "ipv6", 0x8100: "forged", 0x88A8: "forged"}
    steps: list[Step] = [
        _op(_LOAD, _DATA, _R1, 0),
        _op(_LOAD, _END, _R1, 4),
        *_reach(14),
        *(step for at, part in ((6, raw[:4]), (10, raw[4:])) for step in _unless(at, part, "forged")),
        _read(12, _HALF),
        *(step for kind, place in kinds.items() for step in _among([_half(kind)], place)),
        _go("own"),
    ]
    steps += [*_of_ipv4(four), *_of_arp(four), *_of_ipv6(six), *_of_neighbours(six)]
    counted = [_op(_STORE_IMM, _STACK, offset=-4), _op(_LOAD_MAP, _R1, 1, value=table) + _op(0), _op(_MOV, _R2, _STACK)]
    counted += [_op(_ADD_IMM, _R2, value=-4), _op(_CALL, value=_LOOK_UP)]
    steps += ["forged", *counted, (0x15, _R0, 0, 0, "drop"), _op(_MOV_IMM, _R1, value=1), _op(_ATOMIC, _R0, _R1)]
    steps += ["drop", _op(_MOV_IMM, _R0, value=_DROP), _op(_EXIT), "own", _op(_MOV_IMM, _R0, value=_PASS), _op(_EXIT)]
    return _linked(steps)


def _unless(at: int, part: bytes, to: str) -> list[Step]:
    return [_read(at, _WORD if len(part) == 4 else _HALF), (_IS_NOT, _R0, 0, _number(part), to)]


def _of_ipv4(own: Iterable[bytes]) -> list[Step]:
    """Without an address DHCP and membership of groups."""
    begun = [(_IS_NOT, _R0, 0, 0, "forged"), _read(23), *_among([socket.IPPROTO_IGMP], "own")]
    dhcp = [(_IS_NOT, _R0, 0, socket.IPPROTO_UDP, "forged"), _read(14), (_IS_NOT, _R0, 0, 0x45, "forged"), *_reach(38), _read(36, _HALF)]
    told = [*_reach(34), _read(_SOURCE4, _WORD), *_among(map(_number, own), "own")]
    return ["ipv4", *told, *begun, *dhcp, *_among([_half(67)], "own"), _go("forged")]


def _of_arp(own: Iterable[bytes]) -> list[Step]:
    return ["arp", *_reach(42), _read(_SENDER4, _WORD), *_among([*map(_number, own), 0], "own"), _go("forged")]


def _one_of(own: Iterable[bytes], at: int, to: str) -> Iterator[Step]:
    for number, address in enumerate(own):
        other = f"{to}, but for {number} at {at}"
        for part in range(0, 16, 4):
            yield from _unless(at + part, address[part : part + 4], other)
        yield _go(to)
        yield other


def _of_ipv6(own: Iterable[bytes]) -> list[Step]:
    """From nobody the search for duplicates, and membership of groups."""
    found = [*_reach(_BEHIND6), *_one_of(own, _SOURCE6, "own6"), *_one_of([bytes(16)], _SOURCE6, "nobody"), _go("forged")]
    nobody = [_read(_NEXT6), *_among([_HOP], "groups"), (_IS_NOT, _R0, 0, _ICMP6, "forged"), *_reach(_BEHIND6 + 1), _read(_BEHIND6)]
    return ["ipv6", *found, "nobody", *nobody, *_among([_SOLICIT, *_GROUPS], "own"), _go("forged")]


def _of_neighbours(own: Iterable[bytes]) -> list[Step]:
    """What is said to neighbours is said right behind the header, but for groups, whose option has eight bytes."""
    further = [(_IS, _R0, 0, kind, "further") for kind in (_ROUTING, _OPTIONS)]
    steps: list[Step] = ["own6", _read(_NEXT6), *_among([_ICMP6], "said"), *_among([_HOP], "hop"), *further, _go("own")]
    steps += ["further", *_reach(_BEHIND6 + 2), _read(_BEHIND6), *_among(_EXTENSIONS, "forged"), _go("own")]
    steps += ["hop", *_reach(_BEHIND6 + 2), _read(_BEHIND6), *_among([_ICMP6], "groups"), _go("further")]
    steps += ["groups", *_reach(_BEHIND6 + 9), _read(_BEHIND6), (_IS_NOT, _R0, 0, _ICMP6, "forged"), _read(_BEHIND6 + 1)]
    steps += [(_IS_NOT, _R0, 0, 0, "forged"), _read(_BEHIND6 + 8), *_among(_GROUPS, "own"), _go("forged")]
    steps += ["said", *_reach(_BEHIND6 + 1), _read(_BEHIND6), *_among([_ROUTER, _REDIRECT], "forged"), (_IS_NOT, _R0, 0, _ADVERT, "own")]
    return [*steps, *_reach(_TARGET6 + 16), *_one_of(own, _TARGET6, "own"), _go("forged")]


def _linked(steps: Iterable[Step]) -> bytes:
    """The jumps led to their places."""
    places: dict[str, int] = {}
    flat: list[bytes | tuple[int, int, int, int, str]] = []
    for step in steps:
        if isinstance(step, str):
            places[step] = len(flat)
        elif isinstance(step, bytes):
            flat += [step[at : at + 8] for at in range(0, len(step), 8)]
        else:
            flat.append(step)
    code = [
        step if isinstance(step, bytes) else _op(step[0], step[1], step[2], places[step[4]] - number - 1, step[3])
        for number, step in enumerate(flat)
    ]
    return b"".join(code)


_SAMPLE = (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))
_RELEASE = hashlib.sha256(_program(0, "02:00:00:00:00:01", _SAMPLE)).hexdigest()[:4]
"""What the names of our programs have behind their beginning: another release whose program is another one sees by it that it has to
replace them. Fifteen characters are as many as the kernel keeps."""
