# SPDX-License-Identifier: Apache-2.0
"""The shortcut from the host's link into containers: an eBPF classifier at the link's ingress, and its map of addresses.

A VXLAN packet for a container of this host loses its outer headers there and goes on inside the container (`bpf_redirect_peer`); on a
bare link, which receives packets without frames (that of the encrypted tunnel), it gets the frame that it needs there. It meets no IP
stack, no netfilter hook, no UDP socket, no tunnel device and no queue of this host. Measured: 1.13 times the round trips of the way by the
tunnel device and nft's ingress hook; on a bare link 0.43 us less for each packet. What the program does not know for sure (an address that
no delivery names, another source or outer address, IP options, fragments, a TTL that is over) it leaves to whatever comes next, which is
that way.

Sources: bpf-helpers(7), include/uapi/linux/{bpf,pkt_cls}.h, RFC 7348, RFC 1141 (the checksum of a header whose TTL is one less). The
program hangs at the link itself (tcx, Linux 6.6) and lives there with its map, whoever made them; nothing is pinned anywhere. The older
way, a filter of tc(8), needs a queueing discipline, and while that is made the link sends nothing (measured: one packet of a ping was
lost). The program is assembled here: some eighty instructions need no compiler.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from plait.kernel.linux import bpf
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.devices import index_of
from plait.model.objects import PREFIX
from plait.model.shortcut import Delivery, Shortcut

ENTRIES = 1 << 14
"""So many containers of one host can be reached by a shortcut."""
_KEY_BYTES = 4
_VALUE = struct.Struct("=I4s4s4s4s2sH6s6s")
"""Index of the link; source network, its mask, outer address, VNI and UDP port as they stand in the packet; whether frames stay as they
are; MAC of the container and of the link, which the others begin with."""


class Shortcuts:
    """Those of the namespace in which `sock` was made. Not for several threads at once."""

    def __init__(self, sock: nl.NetlinkSocket) -> None:
        self._sock = sock
        self._maps: dict[str, tuple[int, int]] = {}
        """Link -> (id of its map, the map), as of the last look."""

    def read(self, names: Mapping[int, str]) -> list[Shortcut | Delivery]:
        """What the links (index -> name) have. A delivery to a link that has gone names none."""
        found: list[Shortcut | Delivery] = []
        for index, dev in names.items():
            if dev.startswith(PREFIX) and not dev.startswith(links.WIREGUARD_NAMES):
                continue
            with self._ours(index) as (program, name, maps):
                if program < 0:
                    continue
                found.append(Shortcut(dev, _is_current(name), name == _BARE))
                if _is_current(name):
                    table = self._map(dev, maps)
                    found += [_delivery(dev, key, value, names) for key, value in bpf.entries(table, _KEY_BYTES, _VALUE.size, ENTRIES)]
        self._forget(set(self._maps) - {one.dev for one in found})
        return found

    def put(self, dev: str, bare: bool = False) -> None:
        """Make a shortcut without deliveries, in place of whatever program of ours the link has. Idempotent. OSError."""
        index = index_of(dev)
        with contextlib.ExitStack() as stack:
            table = bpf.create_hash(_KEY_BYTES, _VALUE.size, ENTRIES, _MAP_NAME)
            stack.callback(os.close, table)
            program = bpf.load_classifier(*((_bare_program(table), _BARE) if bare else (_program(table), _NAME)))
            stack.callback(os.close, program)
            before, _, _ = stack.enter_context(self._ours(index))
            bpf.attach(index, program, before)
        self._forget([dev])

    def remove(self, dev: str) -> None:
        """An absent one is fine. OSError, ENODEV for a link that is not there."""
        self._forget([dev])
        index = index_of(dev)
        with self._ours(index) as (program, _, _):
            if program >= 0:
                bpf.detach(index, program)

    def deliver(self, wanted: Delivery) -> None:
        """OSError: ENODEV for a link that is not there, ENOENT for one without a shortcut, E2BIG for one too many."""
        index = index_of(wanted.link)
        value = _VALUE.pack(
            index,
            wanted.source.network_address.packed,
            wanted.source.netmask.packed,
            wanted.local.packed,
            struct.pack("!I", wanted.vni << 8),
            struct.pack("!H", wanted.port),
            wanted.framed,
            links.mac_bytes(wanted.mac),
            self._mac(index),
        )
        bpf.put(self._table(wanted.dev), wanted.address.packed, value)

    def withdraw(self, gone: Delivery) -> None:
        """OSError as above; an absent delivery is fine."""
        bpf.remove(self._table(gone.dev), gone.address.packed)

    def close(self) -> None:
        self._forget(list(self._maps))

    def _table(self, dev: str) -> int:
        if dev in self._maps:
            return self._maps[dev][1]
        with self._ours(index_of(dev)) as (_, name, maps):
            if not _is_current(name):
                raise OSError(errno.ENOENT, f"{dev} has no shortcut")
            return self._map(dev, maps)

    def _map(self, dev: str, ids: Sequence[int]) -> int:
        known = self._maps.get(dev)
        if known is None or [known[0]] != ids:
            self._forget([dev])
            self._maps[dev] = known = (ids[0], bpf.opened_map(ids[0]))
        return known[1]

    def _forget(self, devs: Iterable[str]) -> None:
        for dev in devs:
            if dev in self._maps:
                os.close(self._maps.pop(dev)[1])

    @contextlib.contextmanager
    def _ours(self, index: int) -> Iterator[tuple[int, str, list[int]]]:
        """Our program of a link, open, its name and the ids of its maps; (-1, "", []) without one."""
        with contextlib.ExitStack() as stack:
            found: tuple[int, str, list[int]] = (-1, "", [])
            with contextlib.suppress(OSError):  # a kernel without such a hook; link or program have gone
                for one in bpf.attached(index):
                    program = bpf.opened(one)
                    stack.callback(os.close, program)
                    name, maps = bpf.named(program)
                    if name.startswith(_NAMED):
                        found = program, name, maps
                        break
            yield found

    def _mac(self, index: int) -> bytes:
        """The link's own, six bytes. ENODEV if it has none."""
        for kind, body in self._sock.ask(nl.Message(links.RTM_GETLINK, 0, links.get_body(index))):
            if kind == links.RTM_NEWLINK and (mac := links.decode_link(body).mac):
                return links.mac_bytes(mac)
        raise OSError(errno.ENODEV, f"link {index} is none of an endpoint")


def _is_current(name: str) -> bool:
    return name in (_NAME, _BARE)


def _delivery(dev: str, key: bytes, value: bytes, names: Mapping[int, str]) -> Delivery:
    index, network, mask, local, vni, port, framed, mac, _ = _VALUE.unpack(value)
    source = IPv4Network((network, str(IPv4Address(mask))))
    numbers = int.from_bytes(vni, "big") >> 8, int.from_bytes(port, "big")
    return Delivery(dev, IPv4Address(key), source, names.get(index, ""), IPv4Address(local), *numbers, mac.hex(":"), bool(framed))


# --- the program (struct bpf_insn: include/uapi/linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst)

_R0, _R1, _R2, _R3, _R4, _CONTEXT, _SOURCE, _PACKET, _TTL, _STACK = 0, 1, 2, 3, 4, 6, 7, 8, 9, 10
"""Registers: results, arguments, four that calls leave alone, the frame."""
_FOUND = _SOURCE
"""The delivery, once the source has been looked at."""
_BYTE, _HALF, _WORD = 0x10, 0x08, 0x00
_LOAD, _STORE = 0x61, 0x63
_MOV_IMM, _MOV, _ADD_IMM, _AND, _AND_IMM = 0xB7, 0xBF, 0x07, 0x5F, 0x57
_IF_EQ_IMM, _IF_NE_IMM, _IF_LESS_IMM, _IF_MORE, _IF_NE, _GO = 0x15, 0x55, 0xA5, 0x2D, 0x5D, 0x05
_CALL, _EXIT, _LOAD_MAP = 0x85, 0x95, 0x18
_LOOK_UP, _CHANGE_HEAD, _ADJUST_ROOM, _REDIRECT_PEER = 1, 43, 50, 155
_SKB_VLAN, _SKB_DATA, _SKB_DATA_END = 20, 76, 80
_AFTER_MAC, _FIXED_GSO = 1, 1
"""BPF_ADJ_ROOM_MAC; BPF_F_ADJ_ROOM_FIXED_GSO: segments inside are as long as before."""
_OUTER, _UDP, _VXLAN, _FRAME, _INNER, _INNER_END = 14, 34, 42, 50, 64, 84
_WRAP_BYTES = _INNER - _OUTER
_KEEP, _MACS = 22, 24
"""Where a delivery has whether frames stay as they are, and MACs."""
_SENDER = ((0, _WORD), (4, _HALF))
"""The parts of a MAC."""
_UNSPECIFIED, _DROP = -1, 2
"""TC_ACT_UNSPEC: the next one decides. TC_ACT_SHOT."""
_ONE_LESS = socket.htons(0x0100)
"""What a checksum gains, as this machine reads its sixteen bits, when the TTL loses one (RFC 1141)."""
_I_FLAG = socket.htonl(0x08000000)
"""All that stands before the VNI (RFC 7348, section 5)."""
_PLAIN = 0x45
"""IP version 4 without options."""
Step = bytes | tuple[int, int, int, int]
"""Instructions, or a jump (code, register, other register, value) to where the packet is left to others."""


def _op(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    registers = to | of << 4 if sys.byteorder == "little" else to << 4 | of
    return struct.pack("=BBhi", code, registers, offset, value)


def _load(to: int, of: int, offset: int, width: int = _WORD) -> bytes:
    return _op(_LOAD | width, to, of, offset)


def _store(to: int, of: int, offset: int, width: int = _WORD) -> bytes:
    return _op(_STORE | width, to, of, offset)


def _unless(code: int, to: int, of: int = 0, value: int = 0) -> Step:
    return code, to, of, value


def _program(table: int) -> bytes:
    """The classifier's instructions, with the map of this descriptor."""
    inner = _inner(table, _INNER, ((_OUTER + 16, 12, _WORD), (_VXLAN + 4, 16, _WORD), (_UDP + 2, 20, _HALF)))
    return _linked([*_outer(), *inner, *_framed(), *_unwrapped(), *_readdressed(), *_handed_over()])


def _bare_program(table: int) -> bytes:
    """The same for a bare link."""
    begin = [_op(_MOV, _CONTEXT, _R1), *_reach(_INNER_END - _INNER), _unless(_IF_MORE, _R4, _R3), *_is(0, _BYTE, _PLAIN)]
    ethertype = [_op(_MOV_IMM, _R1, value=socket.htons(0x0800)), _store(_PACKET, _R1, 12, _HALF)]
    return _linked([*begin, *_inner(table, 0, ()), *_wrapped(), *_routed(), *ethertype, *_handed_over()])


def _reach(end: int) -> list[bytes]:
    """The packet, and where its first `end` bytes end, beside where what lies in one piece does."""
    return [
        _load(_PACKET, _CONTEXT, _SKB_DATA),
        _load(_R3, _CONTEXT, _SKB_DATA_END),
        _op(_MOV, _R4, _PACKET),
        _op(_ADD_IMM, _R4, value=end),
    ]


def _is(offset: int, width: int, value: int) -> list[Step]:
    return [_load(_R0, _PACKET, offset, width), _unless(_IF_NE_IMM, _R0, value=value)]


def _outer() -> list[Step]:
    """A whole VXLAN packet without VLAN tag, with a frame of IPv4 inside. Its outer checksum need not be verified (RFC 7348, section 5):
    the one inside is, by the container."""
    return [
        _op(_MOV, _CONTEXT, _R1),
        _load(_R0, _CONTEXT, _SKB_VLAN),
        _unless(_IF_NE_IMM, _R0),
        *_reach(_INNER_END),
        _unless(_IF_MORE, _R4, _R3),
        *_is(_OUTER, _BYTE, _PLAIN),
        _load(_R0, _PACKET, _OUTER + 6, _HALF),
        _op(_AND_IMM, _R0, value=socket.htons(0x3FFF)),
        _unless(_IF_NE_IMM, _R0),
        *_is(_OUTER + 9, _BYTE, socket.IPPROTO_UDP),
        *_is(_VXLAN, _WORD, _I_FLAG),
        *_is(_FRAME + 12, _HALF, socket.htons(0x0800)),
        *_is(_INNER, _BYTE, _PLAIN),
    ]


def _inner(table: int, at: int, same: Iterable[tuple[int, int, int]]) -> list[Step]:
    """A delivery for the packet inside, which begins at `at`: all of the delivery's words hold, `same` as `_are` takes them."""
    return [
        _load(_TTL, _PACKET, at + 8, _BYTE),
        _unless(_IF_LESS_IMM, _TTL, value=2),
        _load(_SOURCE, _PACKET, at + 12),
        _load(_R0, _PACKET, at + 16),
        _store(_STACK, _R0, -4),
        _op(_LOAD_MAP, _R1, 1, value=table) + _op(0),
        _op(_MOV, _R2, _STACK),
        _op(_ADD_IMM, _R2, value=-4),
        _op(_CALL, value=_LOOK_UP),
        _unless(_IF_EQ_IMM, _R0),
        _load(_R1, _R0, 8),
        _op(_AND, _SOURCE, _R1),
        _load(_R1, _R0, 4),
        _unless(_IF_NE, _SOURCE, _R1),
        *_are(same),
        _op(_MOV, _FOUND, _R0),
    ]


def _are(same: Iterable[tuple[int, int, int]]) -> list[Step]:
    """That these parts of the packet are those of the delivery in register 0: where, where there, how wide."""
    return [
        step
        for there, here, width in same
        for step in (_load(_R1, _PACKET, there, width), _load(_R2, _R0, here, width), _unless(_IF_NE, _R1, _R2))
    ]


def _framed() -> list[Step]:
    """Of a delivery of frames the MAC as well. The sender's is kept where the frame will be no more."""
    mac = _are(((_FRAME, _MACS, _WORD), (_FRAME + 4, _MACS + 4, _HALF)))
    return [
        _load(_R1, _FOUND, _KEEP, _HALF),
        _op(_IF_EQ_IMM, _R1, offset=len(mac)),
        *mac,
        *(step for at, width in _SENDER for step in (_load(_R1, _PACKET, _FRAME + 6 + at, width), _store(_STACK, _R1, at - 16, width))),
    ]


def _unwrapped() -> list[Step]:
    """The inner packet alone, behind the outer frame's head."""
    return _resized(_ADJUST_ROOM, -_WRAP_BYTES, _op(_MOV_IMM, _R3, value=_AFTER_MAC), _op(_MOV_IMM, _R4, value=_FIXED_GSO))


def _wrapped() -> list[Step]:
    """The packet behind the head of a frame, which is to be filled."""
    return _resized(_CHANGE_HEAD, _OUTER, _op(_MOV_IMM, _R3))


def _resized(function: int, more: int, *arguments: bytes) -> list[Step]:
    """That the packet is in one piece was known before, but not to the verifier."""
    return [
        _op(_MOV, _R1, _CONTEXT),
        _op(_MOV_IMM, _R2, value=more),
        *arguments,
        _op(_CALL, value=function),
        _unless(_IF_NE_IMM, _R0),
        *_reach(_INNER_END - _WRAP_BYTES),
        _op(_IF_MORE, _R4, _R3, offset=1),
        _op(_GO, offset=2),
        _op(_MOV_IMM, _R0, value=_DROP),
        _op(_EXIT),
    ]


def _shorter_life() -> list[bytes]:
    return [
        _op(_ADD_IMM, _TTL, value=-1),
        _store(_PACKET, _TTL, _OUTER + 8, _BYTE),
        _load(_R1, _PACKET, _OUTER + 10, _HALF),
        _op(_ADD_IMM, _R1, value=_ONE_LESS),
        _op(_IF_LESS_IMM, _R1, offset=1, value=0xFFFF),
        _op(_ADD_IMM, _R1, value=1),  # the carry
        _store(_PACKET, _R1, _OUTER + 10, _HALF),
    ]


def _readdressed() -> list[Step]:
    """A frame from the link to the container, one hop older, or as it was sent."""
    routed = _routed()
    kept = [step for at, width in _SENDER for step in _copied(_FOUND, _MACS + at, at, width)]
    kept += [step for at, width in _SENDER for step in _copied(_STACK, at - 16, 6 + at, width)]
    return [
        _load(_R1, _FOUND, _KEEP, _HALF),
        _op(_IF_EQ_IMM, _R1, offset=len(kept) + 1),
        *kept,
        _op(_GO, offset=len(routed)),
        *routed,
    ]


def _routed() -> list[bytes]:
    return [*_shorter_life(), *(step for at in (0, 4, 8) for step in _copied(_FOUND, _MACS + at, at, _WORD))]


def _copied(of: int, there: int, here: int, width: int) -> tuple[bytes, bytes]:
    return _load(_R1, of, there, width), _store(_PACKET, _R1, here, width)


def _handed_over() -> list[Step]:
    """Into the container."""
    return [
        _load(_R1, _FOUND, 0),
        _op(_MOV_IMM, _R2),
        _op(_CALL, value=_REDIRECT_PEER),
        _op(_EXIT),
    ]


def _linked(steps: list[Step]) -> bytes:
    """With an end for what is left to others, and the jumps led there."""
    total = sum(len(step) // 8 if isinstance(step, bytes) else 1 for step in steps)
    code = b""
    for step in steps:
        if isinstance(step, bytes):
            code += step
        else:
            jump, to, of, value = step
            code += _op(jump, to, of, total - len(code) // 8 - 1, value)
    return code + _op(_MOV_IMM, _R0, value=_UNSPECIFIED) + _op(_EXIT)


_NAMED = "plait_"
"""What the names of our programs begin with."""
_NAME, _BARE = (f"{_NAMED}{hashlib.sha256(code + _VALUE.format.encode()).hexdigest()[:9]}" for code in (_program(0), _bare_program(0)))
"""Another release whose program is another one sees by it that it has to replace ours. Fifteen characters, as many as the kernel keeps."""
_MAP_NAME = "plait_here"
