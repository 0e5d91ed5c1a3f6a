# SPDX-License-Identifier: Apache-2.0
"""A socket that takes the frames of DHCP, or of ARP, from a link of the host before the kernel decides whose they are.

A client whose link does not exist yet, or lies in a container, speaks for it on the parent: what is sent has the container's MAC, and what
comes for that MAC is seen here although the kernel hands it to the container. The kernel drops everything else (a classic BPF program), so
nothing but these frames wakes anybody. Sources: packet(7), linux/filter.h, linux/if_packet.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address

from plait.dhcp.frames import ADVERTISEMENT, ETH_ARP, ETH_IP, ETH_IP6, SOLICITATION
from plait.dhcp.message import CLIENT_PORT
from plait.dhcp.message6 import CLIENT_PORT6
from plait.kernel.linux.announce import announcement

_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _ADD_MEMBERSHIP, _AUXDATA, _IGNORE_OUTGOING = 263, 1, 8, 23
_MULTICAST, _UNICAST = 0, 3
_MEMBERSHIP = struct.Struct("=iHH8s")
_AUX = struct.Struct("=IIIHHHH")
_CSUM_NOT_READY = 1 << 3
_LARGEST = 2048
_BURST = 64
_LOAD_HALF, _LOAD_BYTE, _LOAD_WORD, _LOAD_HALF_X, _HEAD_LENGTH = 0x28, 0x30, 0x20, 0x48, 0xB1
_IS, _HAS, _RETURN = 0x15, 0x45, 0x06
_TAGGED = 0xFFFFF000 + 48
"""SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT: whether the frame belongs to a VLAN, which is another link."""
Code = tuple[int, int, int, int]

DHCP: tuple[Code, ...] = (
    (_LOAD_WORD, 0, 0, _TAGGED),
    (_IS, 0, 13, 0),
    (_LOAD_HALF, 0, 0, 12),
    (_IS, 0, 5, ETH_IP),
    (_LOAD_BYTE, 0, 0, 23),
    (_IS, 0, 9, socket.IPPROTO_UDP),
    (_HEAD_LENGTH, 0, 0, 14),
    (_LOAD_HALF_X, 0, 0, 16),
    (_IS, 5, 6, CLIENT_PORT),
    (_IS, 0, 5, ETH_IP6),
    (_LOAD_BYTE, 0, 0, 20),
    (_IS, 0, 3, socket.IPPROTO_UDP),
    (_LOAD_HALF, 0, 0, 56),
    (_IS, 0, 1, CLIENT_PORT6),
    (_RETURN, 0, 0, _LARGEST),
    (_RETURN, 0, 0, 0),
)


def _icmp6(kind: int) -> tuple[Code, ...]:
    return (
        (_LOAD_WORD, 0, 0, _TAGGED),
        (_IS, 0, 7, 0),
        (_LOAD_HALF, 0, 0, 12),
        (_IS, 0, 5, ETH_IP6),
        (_LOAD_BYTE, 0, 0, 20),
        (_IS, 0, 3, socket.IPPROTO_ICMPV6),
        (_LOAD_BYTE, 0, 0, 54),
        (_IS, 0, 1, kind),
        (_RETURN, 0, 0, _LARGEST),
        (_RETURN, 0, 0, 0),
    )


NEIGHBOURS, CLAIMS = _icmp6(SOLICITATION), _icmp6(ADVERTISEMENT)
ARP: tuple[Code, ...] = (
    (_LOAD_WORD, 0, 0, _TAGGED),
    (_IS, 0, 3, 0),
    (_LOAD_HALF, 0, 0, 12),
    (_IS, 0, 1, ETH_ARP),
    (_RETURN, 0, 0, _LARGEST),
    (_RETURN, 0, 0, 0),
)


class PacketSocket:
    """On the link `link` of this namespace, non-blocking. OSError (ENODEV: there is none)."""

    def __init__(self, link: str, program: Sequence[Code] = DHCP) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            _filter(self._sock, program)  # before it is bound, so that it never holds anything else
            self._sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            self._sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            self._sock.bind((link, _ALL))
        except OSError:
            self._sock.close()
            raise

    @property
    def mac(self) -> str:
        """That of the link."""
        address: bytes = self._sock.getsockname()[4]
        return address.hex(":")

    def let_in(self, link: str, kind: int, address: bytes) -> None:
        """As long as this socket is open."""
        wanted = _MEMBERSHIP.pack(socket.if_nametoindex(link), kind, len(address), address)
        self._sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, wanted)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, frame: bytes) -> None:
        """OSError if the link is down or gone; a full queue loses the frame as a wire does."""
        self._sock.send(frame)

    def frames(self) -> list[tuple[bytes, bool]]:
        """Those that have come, at most a burst, each with whether its checksum is computed. OSError once if the link went down."""
        found: list[tuple[bytes, bool]] = []
        while len(found) < _BURST:
            try:
                frame, ancillary, _, _ = self._sock.recvmsg(_LARGEST, socket.CMSG_SPACE(_AUX.size))
            except BlockingIOError:
                break
            status = next(
                (_AUX.unpack(data[: _AUX.size])[0] for level, kind, data in ancillary if (level, kind) == (_SOL_PACKET, _AUXDATA)), 0
            )
            found.append((frame, not status & _CSUM_NOT_READY))
        return found

    def close(self) -> None:
        self._sock.close()


def open_arp(link: str) -> PacketSocket:
    """For ARP in place of DHCP."""
    return PacketSocket(link, ARP)


def open_neighbours(link: str, mac: str) -> PacketSocket:
    """For the questions who has an IPv6 address, with what is sent to `mac` and to the group of its link-local address let in by the link's
    hardware although nobody else listens to that yet."""
    opened = PacketSocket(link, NEIGHBOURS)
    raw = bytes.fromhex(mac.replace(":", ""))
    for kind, address in ((_UNICAST, raw), (_MULTICAST, b"\x33\x33\xff" + raw[3:])):
        opened.let_in(link, kind, address)
    return opened


def open_claims(link: str) -> PacketSocket:
    """For the answers to that, which go to everybody where nobody asks."""
    opened = PacketSocket(link, CLAIMS)
    opened.let_in(link, _MULTICAST, b"\x33\x33\0\0\0\1")
    return opened


def link_mac(link: str) -> str:
    """The MAC of a link of this namespace. OSError if there is none."""
    with contextlib.closing(PacketSocket(link)) as sock:
        return sock.mac


def announce_here(link: str, address: IPv4Address) -> None:
    """Tell the neighbours on a link that `address` is at it now. OSError if there is none."""
    with contextlib.closing(open_arp(link)) as sock:
        sock.send(announcement(address, bytes.fromhex(sock.mac.replace(":", ""))))


def _filter(sock: socket.socket, program: Sequence[Code]) -> None:
    raw = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *code) for code in program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(raw)))
