# SPDX-License-Identifier: Apache-2.0
"""How one DNS process follows another without a query being lost, over the end of their agents.

A child that may be succeeded has a listening UNIX socket (SOCK_SEQPACKET). When its agent ends it goes on answering what it knew, and
waits there for the next agent, `LINGER` seconds at most; the kernel ends it then (alarm(2)), whatever state it is in.

| who | message | descriptors |
|---|---|---|
| old child, to whoever connects | `GREETING`, how many sockets there are, names of some of them, a line each | those sockets |
| successor, once it answers itself | `DRAIN` | |
| old child, for each TCP connection once nothing of it is on its way | `CONNECTION` and what came of the next query | that connection |

Then the old child answers what is on its way to resolvers, and ends. Messages are text and bytes alone: both ends may be of different
versions of plait and of Python. Who does not greet as expected is ended, and the successor opens the sockets anew.

Free of heavy imports, because the child loads it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from plait.serve.dns_link import MOST_FDS, SocketName

if TYPE_CHECKING:
    from pathlib import Path

LINGER, DRAIN_TIME = 30, 10
"""Whole seconds that a child waits for a successor, and that it then has for what is on its way."""
GREETING, DRAIN, CONNECTION = b"plait-dns 1", b"drain", b"connection "
_PATIENCE = 2.0
"""Seconds that either end may take for one message."""
_MESSAGE = 1 << 17
_UCRED_SIZE, _PID_SIZE = 12, 4  # struct ucred of unix(7): pid, uid, gid


class Predecessor:
    """A child that still answers: its sockets, and the link on which it waits for `DRAIN`."""

    def __init__(self, link: socket.socket, sockets: dict[SocketName, socket.socket]) -> None:
        self.link, self.sockets = link, sockets


def listen(path: Path) -> socket.socket:
    """The socket at `path` for the successor of who listens there, of this user alone. Whoever listened there before is no longer
    found. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path.unlink(missing_ok=True)
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


def find(path: Path) -> Predecessor | None:
    """The child that waits at `path` for a successor, None if there is none. One that does not keep to the protocol is ended. Blocks for
    a few seconds at most."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(_PATIENCE)
    try:
        link.connect(str(path))
    except OSError:
        link.close()
        return None
    sockets: dict[SocketName, socket.socket] = {}
    try:
        _receive(link, sockets)
    except (OSError, ValueError):
        for sock in sockets.values():
            sock.close()
        _end(link)
        link.close()
        return None
    return Predecessor(link, sockets)


def dismiss(path: Path) -> None:
    """Have the child that waits at `path` end, if there is one. Blocks until it has."""
    found = find(path)
    if found is not None:
        for sock in found.sockets.values():
            sock.close()
        with found.link:
            _end(found.link)


def greet(link: socket.socket, sockets: Mapping[SocketName, socket.socket]) -> None:
    """Give the successor at the other end of `link` the sockets. Raises OSError."""
    link.settimeout(_PATIENCE)
    names = list(sockets)
    for start in range(0, max(1, len(names)), MOST_FDS):
        some = names[start : start + MOST_FDS]
        lines = [GREETING, str(len(names)).encode(), *(" ".join(map(str, name)).encode() for name in some)]
        socket.send_fds(link, [b"\n".join(lines)], [sockets[name].fileno() for name in some])


def give(link: socket.socket, connection: socket.socket, received: bytes) -> None:
    """Give the successor a TCP connection, of which `received` is the beginning of a query. Raises OSError."""
    socket.send_fds(link, [CONNECTION + received], [connection.fileno()])


def take(link: socket.socket, admit: Callable[[socket.socket, bytes], None]) -> bool:
    """Take the next TCP connection of the predecessor, if it has come. False once it has given all. Raises OSError."""
    try:
        data, fds, _, _ = socket.recv_fds(link, _MESSAGE, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    for fd in fds:
        connection = socket.socket(fileno=fd)
        connection.setblocking(False)
        admit(connection, data[len(CONNECTION) :])
    return bool(data)


def _receive(link: socket.socket, sockets: dict[SocketName, socket.socket]) -> None:
    """All sockets of the greeting. Raises OSError, or ValueError for one that is not understood."""
    while True:
        data, fds, _, _ = socket.recv_fds(link, _MESSAGE, MOST_FDS)
        found = [socket.socket(fileno=fd) for fd in fds]
        greeting, _, rest = data.partition(b"\n")
        if greeting != GREETING:
            for sock in found:
                sock.close()
            raise ValueError("not the greeting of a DNS process of plait")
        count, *lines = rest.decode().split("\n")
        for line, sock in zip(lines, found, strict=True):
            protocol, address, port = line.split(" ")
            sock.setblocking(False)
            sockets[protocol, address, int(port)] = sock
        if len(sockets) >= int(count):
            return


def _end(link: socket.socket) -> None:
    """End the process that listens at the other end, which is the last that called listen(2) there (unix(7), SO_PEERCRED)."""
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED_SIZE)
    try:
        process = os.pidfd_open(int.from_bytes(credentials[:_PID_SIZE], sys.byteorder))
    except OSError:  # it has ended
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], _PATIENCE)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
