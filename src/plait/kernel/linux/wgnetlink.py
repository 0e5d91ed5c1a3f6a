# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices of the kernel: generic netlink messages <-> `wgdevice`.

Sources: include/uapi/linux/wireguard.h, include/uapi/linux/genetlink.h. Array elements are nested attributes of kind 0. A device with
more peers than fit into one message is told in several; a peer that goes on in the next one is there again by its key.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.wgdevice import Change, Cidr, Device, Endpoint, Peer, PeerChange, key_bytes, key_text

FAMILY, VERSION = "wireguard", 1
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2
CMD_GET_DEVICE, CMD_SET_DEVICE = 0, 1
DEVICE_IFINDEX, DEVICE_PRIVATE_KEY, DEVICE_PUBLIC_KEY, DEVICE_LISTEN_PORT, DEVICE_PEERS = 1, 3, 4, 6, 8
PEER_PUBLIC_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE, PEER_HANDSHAKE = 1, 3, 4, 5, 6
PEER_RX_BYTES, PEER_TX_BYTES, PEER_ALLOWED = 7, 8, 9
PEER_F_REMOVE_ME = 1
ALLOWED_FAMILY, ALLOWED_ADDRESS, ALLOWED_MASK = 1, 2, 3
_GENL = struct.Struct("=BBH")
_SOCKADDR_IN, _SOCKADDR_IN6 = struct.Struct("=HH4s8x"), struct.Struct("=HHI16sI")
_TIMESPEC = struct.Struct("=qq")


class WgNetlink:
    """One generic netlink socket in the namespace where it was made; the family is looked up at the first use (OSError without it)."""

    def __init__(self) -> None:
        self._sock = nl.NetlinkSocket(nl.NETLINK_GENERIC)
        self._family = 0

    def read(self, index: int) -> Device:
        return decode([body for _, body in self._sock.dump(self._resolved(), get_body(index))])

    def write(self, index: int, change: Change) -> None:
        self._sock.ask(nl.Message(self._resolved(), 0, set_body(index, change)))

    def _resolved(self) -> int:
        if not self._family:
            answers = self._sock.ask(nl.Message(GENL_ID_CTRL, 0, family_body()))
            self._family = decode_family(answers[0][1])
        return self._family

    def close(self) -> None:
        self._sock.close()


def family_body() -> bytes:
    """The body of a request for the number of WireGuard's family."""
    return _GENL.pack(CTRL_CMD_GETFAMILY, 1, 0) + nl.attr_text(CTRL_ATTR_FAMILY_NAME, FAMILY)


def decode_family(body: bytes) -> int:
    """The number in the answer. Raises NetlinkParseError."""
    number = nl.number_of(nl.parse_attrs(body[_GENL.size :]).get(CTRL_ATTR_FAMILY_ID))
    if not number:
        raise nl.NetlinkParseError("an answer about a generic netlink family has no number")
    return number


def get_body(index: int) -> bytes:
    return _GENL.pack(CMD_GET_DEVICE, VERSION, 0) + nl.attr_u32(DEVICE_IFINDEX, index)


def set_body(index: int, change: Change) -> bytes:
    """The body of the request that makes `change` on the device with that interface index."""
    body = _GENL.pack(CMD_SET_DEVICE, VERSION, 0) + nl.attr_u32(DEVICE_IFINDEX, index)
    if change.private is not None:
        body += nl.attr(DEVICE_PRIVATE_KEY, change.private)
    if change.port is not None:
        body += nl.attr_u16(DEVICE_LISTEN_PORT, change.port)
    if change.peers:
        body += nl.nested(DEVICE_PEERS, *(nl.nested(0, *_peer_attrs(peer)) for peer in change.peers))
    return body


def _peer_attrs(peer: PeerChange) -> Iterable[bytes]:
    yield nl.attr(PEER_PUBLIC_KEY, key_bytes(peer.public))
    if peer.remove:
        yield nl.attr_u32(PEER_FLAGS, PEER_F_REMOVE_ME)
    if peer.endpoint is not None:
        yield nl.attr(PEER_ENDPOINT, _sockaddr(peer.endpoint))
    if peer.keepalive is not None:
        yield nl.attr_u16(PEER_KEEPALIVE, peer.keepalive)
    if peer.allowed:
        yield nl.nested(PEER_ALLOWED, *(nl.nested(0, *_allowed_attrs(cidr)) for cidr in peer.allowed))


def _allowed_attrs(cidr: Cidr) -> tuple[bytes, ...]:
    family = socket.AF_INET if cidr.version == 4 else socket.AF_INET6
    return (
        nl.attr_u16(ALLOWED_FAMILY, family),
        nl.attr(ALLOWED_ADDRESS, cidr.network_address.packed),
        nl.attr_u8(ALLOWED_MASK, cidr.prefixlen),
    )


def _sockaddr(endpoint: Endpoint) -> bytes:
    host, port = endpoint
    if host.version == 4:
        return _SOCKADDR_IN.pack(socket.AF_INET, socket.htons(port), host.packed)
    return _SOCKADDR_IN6.pack(socket.AF_INET6, socket.htons(port), 0, host.packed, 0)


def decode(bodies: Iterable[bytes]) -> Device:
    """The messages of one dump -> the device. Raises NetlinkParseError, or ValueError for an address that is none."""
    public, port = "", 0
    peers: dict[str, Peer] = {}
    for body in bodies:
        attrs = nl.parse_attrs(body[_GENL.size :])
        public = key_text(attrs[DEVICE_PUBLIC_KEY]) if DEVICE_PUBLIC_KEY in attrs else public
        port = nl.number_of(attrs.get(DEVICE_LISTEN_PORT), port)
        for _, element in nl.each_attr(attrs.get(DEVICE_PEERS, b"")):
            peer = _peer(nl.parse_attrs(element))
            known = peers.get(peer.public)
            peers[peer.public] = peer if known is None else _continued(known, peer)
    return Device(public, port, tuple(peers.values()))


def _continued(known: Peer, more: Peer) -> Peer:
    """The rest of a peer's rows came in another message, which repeats nothing but its key."""
    return Peer(known.public, known.endpoint, known.keepalive, known.handshake, known.received, known.sent, (*known.allowed, *more.allowed))


def _peer(attrs: dict[int, bytes]) -> Peer:
    if PEER_PUBLIC_KEY not in attrs:
        raise nl.NetlinkParseError("a WireGuard peer without a key")
    time = attrs.get(PEER_HANDSHAKE, b"")
    seconds, nanoseconds = _TIMESPEC.unpack(time) if len(time) == _TIMESPEC.size else (0, 0)
    return Peer(
        public=key_text(attrs[PEER_PUBLIC_KEY]),
        endpoint=_endpoint(attrs[PEER_ENDPOINT]) if PEER_ENDPOINT in attrs else None,
        keepalive=nl.number_of(attrs.get(PEER_KEEPALIVE)),
        handshake=seconds + nanoseconds / 1e9,
        received=nl.number_of(attrs.get(PEER_RX_BYTES)),
        sent=nl.number_of(attrs.get(PEER_TX_BYTES)),
        allowed=tuple(_allowed(nl.parse_attrs(row)) for _, row in nl.each_attr(attrs.get(PEER_ALLOWED, b""))),
    )


def _endpoint(data: bytes) -> Endpoint | None:
    """A sockaddr; None for the empty one of a peer that was never heard from."""
    if len(data) == _SOCKADDR_IN.size:
        family, port, address = _SOCKADDR_IN.unpack(data)
        return (IPv4Address(address), socket.ntohs(port)) if family == socket.AF_INET else None
    if len(data) == _SOCKADDR_IN6.size:
        family, port, _, address, _ = _SOCKADDR_IN6.unpack(data)
        return (IPv6Address(address), socket.ntohs(port)) if family == socket.AF_INET6 else None
    raise nl.NetlinkParseError(f"an endpoint of {len(data)} bytes")


def _allowed(attrs: dict[int, bytes]) -> Cidr:
    address = attrs.get(ALLOWED_ADDRESS, b"")
    if len(address) not in (4, 16):
        raise nl.NetlinkParseError(f"an allowed address of {len(address)} bytes")
    host = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
    return ip_network((host, nl.number_of(attrs.get(ALLOWED_MASK))))
