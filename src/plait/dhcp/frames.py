# SPDX-License-Identifier: Apache-2.0
"""Datagrams of DHCP in Ethernet frames, as a client sends and takes them that has no address yet; and who has an address, asked by ARP.

For IPv6 they go to all servers from the client's link-local address, and whoever asks who has that is told.

Sources: RFC 791, RFC 8200, RFC 768, RFC 1071 (checksums), RFC 826 and RFC 5227 (the question before an address is used), RFC 4861.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from plait.dhcp.message import CLIENT_PORT, SERVER_PORT
from plait.dhcp.message6 import CLIENT_PORT6, SERVER_PORT6, SERVERS, SERVERS_MAC
from plait.model.addr import EitherAddress, link_local

BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
EVERYBODY = IPv4Address("255.255.255.255")
_ETHERNET = struct.Struct("!6s6sH")
_IP = struct.Struct("!BBHHHBBH4s4s")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_UDP, _TTL = 17, 64
ETH_IP, ETH_ARP, ETH_IP6 = 0x0800, 0x0806, 0x86DD
_ICMP6, SOLICITATION, ADVERTISEMENT = 58, 135, 136
_NOBODY, _GROUPS = bytes(16), IPv6Address("ff02::1:ff00:0")
_SOLICITED, _OVERRIDE, _TARGET_MAC = 1 << 30, 1 << 29, b"\2\1"
_ASKS = 1


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    """The Internet checksum; an odd byte counts as if a zero followed."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(
    payload: bytes,
    source: tuple[str, EitherAddress],
    to: tuple[str, EitherAddress],
    ports: tuple[int, int] = (CLIENT_PORT, SERVER_PORT),
) -> bytes:
    """The frame with a UDP datagram from one (MAC, address) to another."""
    length = 8 + len(payload)
    pseudo = source[1].packed + to[1].packed + struct.pack("!HH", _UDP, length)
    head = struct.pack("!HHH", *ports, length)
    udp = head + struct.pack("!H", checksum(pseudo + head + b"\0\0" + payload) or 0xFFFF) + payload
    fields = (0x45, 0x10, 20 + length, 0, 0, _TTL, _UDP)
    bare = _IP.pack(*fields, 0, source[1].packed, to[1].packed)
    ip = _IP.pack(*fields, checksum(bare), source[1].packed, to[1].packed)
    return _ETHERNET.pack(mac_bytes(to[0]), mac_bytes(source[0]), ETH_IP) + ip + udp


def datagram6(payload: bytes, mac: str) -> bytes:
    """The frame with what a client of IPv6 says to the servers of its link."""
    length = 8 + len(payload)
    source = link_local(mac).packed
    pseudo = source + SERVERS.packed + struct.pack("!II", length, _UDP)
    head = struct.pack("!HHH", CLIENT_PORT6, SERVER_PORT6, length)
    udp = head + struct.pack("!H", checksum(pseudo + head + b"\0\0" + payload) or 0xFFFF) + payload
    ip = struct.pack("!IHBB", 6 << 28, length, _UDP, 1) + source + SERVERS.packed
    return _ETHERNET.pack(mac_bytes(SERVERS_MAC), mac_bytes(mac), ETH_IP6) + ip + udp


def payload6_of(frame: bytes, summed: bool = True) -> tuple[str, IPv6Address, bytes] | None:
    """(sender's MAC, its address, payload) of a datagram to a client of IPv6; None for whatever else it is, or if it is damaged."""
    if len(frame) < 62 or frame[12:14] != b"\x86\xdd" or frame[14] >> 4 != 6 or frame[20] != _UDP:
        return None
    length = int.from_bytes(frame[18:20], "big")
    udp = frame[54 : 54 + length]
    if not 8 <= length == len(udp) == int.from_bytes(udp[4:6], "big") or int.from_bytes(udp[2:4], "big") != CLIENT_PORT6:
        return None
    if summed and checksum(frame[22:54] + struct.pack("!II", length, _UDP) + udp):
        return None
    return frame[6:12].hex(":"), IPv6Address(frame[22:38]), udp[8:]


def sought(frame: bytes) -> tuple[str, IPv6Address, IPv6Address] | None:
    """(MAC, address, target) of who asks for a neighbour; None for whatever else it is."""
    if len(frame) < 78 or frame[12:14] != b"\x86\xdd" or frame[20] != _ICMP6 or frame[54] != SOLICITATION:
        return None
    return frame[6:12].hex(":"), IPv6Address(frame[22:38]), IPv6Address(frame[62:78])


def here(mac: str, target: IPv6Address, asker: tuple[str, IPv6Address]) -> bytes:
    """The answer that `target` is at `mac`."""
    body = target.packed + _TARGET_MAC + mac_bytes(mac)
    head = struct.pack("!BBHI", ADVERTISEMENT, 0, 0, _SOLICITED | _OVERRIDE)
    pseudo = target.packed + asker[1].packed + struct.pack("!II", len(head) + len(body), _ICMP6)
    icmp = head[:2] + struct.pack("!H", checksum(pseudo + head + body)) + head[4:] + body
    ip = struct.pack("!IHBB", 6 << 28, len(icmp), _ICMP6, 255) + target.packed + asker[1].packed
    return _ETHERNET.pack(mac_bytes(asker[0]), mac_bytes(mac), ETH_IP6) + ip + icmp


def payload_of(frame: bytes, port: int = CLIENT_PORT, summed: bool = True) -> tuple[str, IPv4Address, bytes] | None:
    """(sender's MAC, its address, payload) of a datagram to `port`; None for whatever else it is, or if it is damaged. `summed` False: its
    UDP checksum is still to be computed, by hardware that it never passes (packet(7), TP_STATUS_CSUMNOTREADY)."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00":
        return None
    ip = frame[14:]
    head, total = (ip[0] & 0x0F) * 4, int.from_bytes(ip[2:4], "big")
    fragment = int.from_bytes(ip[6:8], "big") & 0x3FFF
    if ip[0] >> 4 != 4 or not 20 <= head <= total - 8 or total > len(ip) or fragment or ip[9] != _UDP or checksum(ip[:head]):
        return None
    udp = ip[head:total]
    length = int.from_bytes(udp[4:6], "big")
    if int.from_bytes(udp[2:4], "big") != port or not 8 <= length <= len(udp):
        return None
    udp = udp[:length]
    pseudo = ip[12:20] + struct.pack("!HH", _UDP, length)
    if summed and any(udp[6:8]) and checksum(pseudo + udp):
        return None
    return frame[6:12].hex(":"), IPv4Address(ip[12:16]), udp[8:]


def question(mac: str, address: IPv4Address) -> bytes:
    """The frame by which `mac`, which has no address, asks who has `address`."""
    arp = _ARP.pack(1, ETH_IP, 6, 4, _ASKS, mac_bytes(mac), bytes(4), bytes(6), address.packed)
    return _ETHERNET.pack(mac_bytes(BROADCAST_MAC), mac_bytes(mac), ETH_ARP) + arp


def question6(mac: str, address: IPv6Address) -> bytes:
    """The same for IPv6: a solicitation from nobody (RFC 4862, section 5.4.2)."""
    group = group_of(address)
    head = struct.pack("!BBHI", SOLICITATION, 0, 0, 0)
    pseudo = _NOBODY + group.packed + struct.pack("!II", len(head) + 16, _ICMP6)
    icmp = head[:2] + struct.pack("!H", checksum(pseudo + head + address.packed)) + head[4:] + address.packed
    ip = struct.pack("!IHBB", 6 << 28, len(icmp), _ICMP6, 255) + _NOBODY + group.packed
    return _ETHERNET.pack(b"\x33\x33" + group.packed[12:], mac_bytes(mac), ETH_IP6) + ip + icmp


def group_of(address: IPv6Address) -> IPv6Address:
    """Where who has `address` listens for such questions (RFC 4291, section 2.7.1)."""
    return IPv6Address(int(_GROUPS) | int(address) & 0xFFFFFF)


def claim6(frame: bytes) -> tuple[str, IPv6Address] | None:
    """(MAC, address) of who says to have an IPv6 address; None for whatever else it is, or if it came through a router."""
    if len(frame) < 78 or frame[12:14] != b"\x86\xdd" or frame[20:22] != bytes((_ICMP6, 255)) or frame[54] != ADVERTISEMENT:
        return None
    return frame[6:12].hex(":"), IPv6Address(frame[62:78])


def claim(frame: bytes) -> tuple[str, IPv4Address] | None:
    """(MAC, address) of who says to have an address, by an answer or by the way; None for whatever else it is."""
    if len(frame) < 14 + _ARP.size or frame[12:14] != b"\x08\x06":
        return None
    hardware, protocol, length, size, _, mac, address, _, _ = _ARP.unpack_from(frame, 14)
    if (hardware, protocol, length, size) != (1, ETH_IP, 6, 4) or not any(address):
        return None
    return mac.hex(":"), IPv4Address(address)
