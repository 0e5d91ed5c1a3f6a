# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP checks: something accepts a connection; nothing says that nobody is there."""

from __future__ import annotations

import asyncio
import socket

from plait.checks.dial import CheckFailed, connect, reason, split_host_port, tls_context
from plait.checks.resolve import Resolver
from plait.model.discovery import CheckDefinition
from plait.services.health import Result

_PROBE = b"\n"
"""What a UDP check sends if it has no body of its own."""
_ANSWER_MAX = 65536


async def run_tcp(definition: CheckDefinition, resolver: Resolver) -> Result:
    """Passing once connected, with `tls` once the handshake is done."""
    host, port = split_host_port(definition.target)
    try:
        sock = await connect(resolver, host, port, definition.timeout)
        with sock:
            if definition.tls:
                await _handshake(sock, definition, host)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise CheckFailed(f"TCP connect {definition.target}: {reason(error)}") from error
    return Result("passing", f"TCP connect {definition.target}: Success")


async def _handshake(sock: socket.socket, definition: CheckDefinition, host: str) -> None:
    name = definition.tls_server_name or host
    _, writer = await asyncio.open_connection(sock=sock, ssl=tls_context(definition), server_hostname=name)
    writer.transport.abort()


async def run_udp(definition: CheckDefinition, resolver: Resolver) -> Result:
    """Critical only if the target's host says that nobody listens (ICMP); an answer, and none at all, pass."""
    host, port = split_host_port(definition.target)
    loop = asyncio.get_running_loop()
    try:
        with await connect(resolver, host, port, definition.timeout, socket.SOCK_DGRAM) as sock:
            await loop.sock_sendall(sock, definition.body.encode() or _PROBE)
            try:
                async with asyncio.timeout(definition.timeout * 0.9):
                    await loop.sock_recv(sock, _ANSWER_MAX)
            except TimeoutError:
                return Result("passing", f"UDP connect {definition.target}: Success (no answer, and no error)", timed_out=True)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise CheckFailed(f"UDP connect {definition.target}: {reason(error)}") from error
    return Result("passing", f"UDP connect {definition.target}: Success")
