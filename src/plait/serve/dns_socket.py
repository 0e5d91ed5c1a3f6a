# SPDX-License-Identifier: Apache-2.0
"""Name of a socket (protocol, address, port) -> the socket, bound and ready for queries; a connected one -> who is at its other end."""

from __future__ import annotations

import socket
from typing import NamedTuple

from plait.serve.dns_link import Address, SocketName

RECEIVE_BUFFER = 4 << 20
"""Bytes asked for as SO_RCVBUF, to hold what arrives while a new table is taken in or a new child starts."""
_BACKLOG = 128
_SO_RCVBUFFORCE = 33
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h; the socket module has no names for them


def opened(name: SocketName) -> socket.socket:
    """A non-blocking socket in which queries collect from now on, whoever reads them. Raises OSError."""
    protocol, address, port = name
    if protocol == "tcp":
        sock = _bound(socket.SOCK_STREAM, (address, port))
        sock.listen(_BACKLOG)
        return sock
    sock = _bound(socket.SOCK_DGRAM, (address, port))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN: as much as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return sock


def _bound(kind: int, address: Address) -> socket.socket:
    """A socket of type `kind` bound to `address`, which need not exist yet (IP_FREEBIND): a network's gateway address comes with the
    first pass over the kernel."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:  # else connections of an agent that died keep their port for a minute
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def source(sock: socket.socket) -> bytes:
    """The packed address at the other end of a connection; empty if that is gone already."""
    try:
        host = sock.getpeername()[0].partition("%")[0]
        return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, IndexError):
        return b""


class Place(NamedTuple):
    """Where DNS answers in another network namespace: at `address`, to whoever asks from there, who counts as `own`."""

    address: str
    own: str
    netns: str

    def __str__(self) -> str:
        """As the address of a socket's name."""
        return "@".join(self)


def place_of(address: str) -> Place | None:
    """What the address of a socket's name says of another namespace, None if it is one of this host."""
    parts = address.split("@", 2)
    return Place(*parts) if len(parts) == 3 else None
