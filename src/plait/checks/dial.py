# SPDX-License-Identifier: Apache-2.0
"""What the kinds of checks share: a failure in words, HOST:PORT, a connected socket, a TLS context.

Sockets are non-blocking and used with the loop's `sock_*` calls, which cost a check less than half of a transport and its protocol
(docs/benchmarks.md). Whoever calls bounds the time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from functools import lru_cache

from plait.checks.resolve import Resolver
from plait.model.discovery import CheckDefinition


class CheckFailed(Exception):
    """The check is critical; the text says why and ends up in its output."""


def split_host_port(target: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT. CheckFailed if it is neither."""
    host, colon, port = target.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise CheckFailed(f"{target!r} is not HOST:PORT; an IPv6 address needs brackets")
    return host, int(port)


def reason(error: OSError) -> str:
    """An error of a socket in a few words."""
    match error:
        case socket.gaierror():
            return f"name lookup failed: {error.strerror or error}"
        case ssl.SSLCertVerificationError():
            return f"TLS: {error.verify_message or 'certificate not valid'}"
        case ssl.SSLError():
            return f"TLS: {error.reason or error}"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionResetError() | BrokenPipeError():
            return "connection reset by peer"
    return os.strerror(error.errno).lower() if error.errno else str(error)


async def connect(
    resolver: Resolver, host: str, port: int, timeout_s: float, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A connected non-blocking socket; every address of `host` is tried in turn and gets its share of the time. OSError of the last one,
    TimeoutError if that gave no answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    addresses = await resolver.addresses(host)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    for number, (family, address) in enumerate(addresses):
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            failure = error
            continue
        try:
            left = len(addresses) - number
            if left == 1:
                await loop.sock_connect(sock, (address, port))
            else:
                async with asyncio.timeout((deadline - loop.time()) / left):
                    await loop.sock_connect(sock, (address, port))
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def tls_context(definition: CheckDefinition, alpn: str = "") -> ssl.SSLContext:
    """For a TLS connection as the check wants it. One per way of checking, since loading the system's authorities takes milliseconds."""
    return _context(definition.tls_skip_verify, alpn)


@lru_cache(maxsize=8)
def _context(skip_verify: bool, alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols([alpn])
    return context
