# SPDX-License-Identifier: Apache-2.0
"""Where an agent of the directory alone listens for HTTP: any number of addresses and Unix sockets.

A Unix socket's file belongs to whoever the configuration says, is never open to others in between, and is gone after the end. One that a
dead agent left is replaced, one that answers is not.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from plait.agent.consulconfig import SoloSettings, UnixOwner
from plait.http.server import HttpServer
from plait.model.errors import Conflict, PlaitError

_PRIVATE = 0o600
_PROBE_S = 1.0


@contextlib.asynccontextmanager
async def listening(http: HttpServer, settings: SoloSettings) -> AsyncIterator[None]:
    """Listen on everything that `settings` name; the sockets' files are removed in the end. PlaitError names the first that cannot be."""
    made: list[Path] = []
    try:
        for where in settings.http_listen:
            if isinstance(where, Path):
                sock = bind_unix(where, settings.unix_owner)
                made.append(where)
                await http.serve(sock)
            elif settings.http_port:
                await _start(http, str(where), settings.http_port)
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)


async def _start(http: HttpServer, host: str, port: int) -> None:
    try:
        await http.start(host, port)
    except OSError as error:
        raise PlaitError(f"listening for HTTP on {host}:{port}: {error.strerror}; choose another -http-port") from error


def bind_unix(path: Path, owner: UnixOwner) -> socket.socket:
    """A bound socket whose file has that owner and mode. Conflict if another program answers there, PlaitError if it cannot be made."""
    _make_way(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(sock.fileno(), _PRIVATE)  # bind(2) gives the file this mode (unix(7))
        sock.bind(str(path))
        os.chown(
            path, _number(owner.user, lambda name: pwd.getpwnam(name).pw_uid), _number(owner.group, lambda name: grp.getgrnam(name).gr_gid)
        )
        path.chmod(owner.mode)
    except (OSError, LookupError) as error:
        sock.close()
        raise PlaitError(f"cannot listen on {path}: {error}; see `addresses` and `unix_sockets` in the configuration") from error
    return sock


def _make_way(path: Path) -> None:
    """Remove a socket that nobody answers on."""
    try:
        kind = path.lstat().st_mode
    except OSError:  # bind says what is wrong, if anything is
        return
    if not stat.S_ISSOCK(kind):
        raise Conflict(f"cannot listen on {path}: it is there and is no socket; move it away or choose another path")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(_PROBE_S)
        probe.connect(str(path))
        raise Conflict(f"cannot listen on {path}: a program answers there already; stop it or choose another path")
    path.unlink()


def _number(who: str, known: Callable[[str], int]) -> int:
    """Of a user or group, which may be a number already; -1 = as it is."""
    if not who:
        return -1
    return int(who) if who.isascii() and who.isdecimal() else known(who)
