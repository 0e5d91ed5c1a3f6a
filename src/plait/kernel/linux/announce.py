# SPDX-License-Identifier: Apache-2.0
"""What the ports of a bridge are told when an address has come to another MAC: one frame each, so that who has talked to the former owner
finds the new one at once and not when its entry is old (about half a minute, arp(7)).

A bridge that answers for other hosts has nobody behind it who would say so. Sources: RFC 826, RFC 5227 (gratuitous ARP); RFC 4861, section
7.2.6 (unsolicited neighbour advertisement, with the flag Override).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv6Address

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.link import dump_links, mac_bytes
from plait.model.addr import IPAddress
from plait.model.objects import PREFIX, BridgeFdb, EndpointLink, Neigh, Op

_ETH_ARP, _ETH_IP4, _ETH_IP6 = 0x0806, 0x0800, 0x86DD
_ICMP6, _ADVERTISEMENT, _OVERRIDE, _TARGET_MAC = 58, 136, 1 << 29, 2
_BROADCAST, _ALL_NODES_MAC, _ALL_NODES = b"\xff" * 6, bytes.fromhex("333300000001"), IPv6Address("ff02::1")


def announce(netlink: nl.NetlinkSocket, ops: Sequence[Op]) -> None:
    """Tell the endpoints that are ports of bridges of the neighbours there which `ops` have put; the owner of an address not. Who cannot be
    told is on its own: nothing is raised."""
    rows = [op.new for op in ops if isinstance(op.new, Neigh) and op.new.dev.startswith(f"{PREFIX}b")]
    if not rows:
        return
    owners = {op.new.mac: op.new.port for op in ops if isinstance(op.new, BridgeFdb)}
    with contextlib.suppress(OSError, nl.NetlinkParseError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        found = dump_links(netlink)
        names = {link.index: link.name for link in found}
        ports = {(names.get(link.master, ""), link.name) for link in found if isinstance(link.link, EndpointLink)}
        for row in rows:
            for port in (port for bridge, port in ports if bridge == row.dev and port != owners.get(row.mac)):
                with contextlib.suppress(OSError):
                    sock.sendto(announcement(row.address, mac_bytes(row.mac)), (port, 0))


def announcement(address: IPAddress, mac: bytes) -> bytes:
    """The frame that says that `address` is at `mac`."""
    if isinstance(address, IPv6Address):
        return _ALL_NODES_MAC + mac + struct.pack("!H", _ETH_IP6) + _advertisement(address, mac)
    arp = struct.pack("!HHBBH", 1, _ETH_IP4, 6, 4, 1) + mac + address.packed + bytes(6) + address.packed
    return _BROADCAST + mac + struct.pack("!H", _ETH_ARP) + arp


def _advertisement(address: IPv6Address, mac: bytes) -> bytes:
    head = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE)
    body = address.packed + struct.pack("!BB", _TARGET_MAC, 1) + mac
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", len(head) + len(body), _ICMP6)
    checked = head[:2] + struct.pack("!H", _checksum(pseudo + head + body)) + head[4:] + body
    return struct.pack("!IHBB", 6 << 28, len(checked), _ICMP6, 255) + address.packed + _ALL_NODES.packed + checked


def _checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
