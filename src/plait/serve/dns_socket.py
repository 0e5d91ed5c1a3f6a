# SPDX-License-Identifier: Apache-2.0
"""Address -> socket bound to it, as both listeners of the DNS child need it."""

from __future__ import annotations

import socket

from plait.serve.dns_link import Address

_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h; the socket module has no names for them


def bind(kind: int, address: Address) -> socket.socket:
    """A non-blocking socket of type `kind` bound to `address`, which need not exist yet (IP_FREEBIND): a network's gateway
    address comes with the first pass over the kernel. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:  # else connections of a child that died keep their port for a minute
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
