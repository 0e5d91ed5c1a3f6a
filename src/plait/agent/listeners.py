# SPDX-License-Identifier: Apache-2.0
"""Where an agent of the directory alone listens for HTTP: any number of addresses and Unix sockets.

A Unix socket's file belongs to whoever the configuration says and is gone after the end.
"""

from __future__ import annotations

import contextlib
import grp
import pwd
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from plait.agent.consulconfig import SoloSettings, UnixOwner
from plait.http import unixsocket
from plait.http.server import HttpServer
from plait.model.errors import PlaitError


@contextlib.asynccontextmanager
async def listening(http: HttpServer, settings: SoloSettings, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Listen on everything that `settings` name, for HTTPS only if there is `tls`; the sockets' files are removed in the end. PlaitError
    names the first that cannot be."""
    made: list[Path] = []
    try:
        for where in settings.http_listen:
            if isinstance(where, Path):
                sock = bind_unix(where, settings.unix_owner)
                made.append(where)
                await http.serve(sock)
            elif settings.http_port:
                await _start(http, str(where), settings.http_port)
        for host in settings.https_listen if tls is not None else ():
            await _start(http, str(host), settings.https_port, tls)
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)


async def _start(http: HttpServer, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
    try:
        await http.start(host, port, tls)
    except OSError as error:
        what = "http" if tls is None else "https"
        raise PlaitError(f"listening for {what.upper()} on {host}:{port}: {error.strerror}; choose another -{what}-port") from error


def bind_unix(path: Path, owner: UnixOwner) -> socket.socket:
    """See `unixsocket.bind`; PlaitError also for a user or group that there is none of."""
    try:
        uid = _number(owner.user, lambda name: pwd.getpwnam(name).pw_uid)
        gid = _number(owner.group, lambda name: grp.getgrnam(name).gr_gid)
    except LookupError as error:
        raise PlaitError(f"cannot listen on {path}: {error.args[0]}; see `unix_sockets` in the configuration") from error
    return unixsocket.bind(path, owner.mode, uid, gid, hint="see `addresses` and `unix_sockets` in the configuration")


def _number(who: str, known: Callable[[str], int]) -> int:
    """Of a user or group, which may be a number already; -1 = as it is."""
    if not who:
        return -1
    return int(who) if who.isascii() and who.isdecimal() else known(who)
