# SPDX-License-Identifier: Apache-2.0
"""A Unix socket to listen on, whose file is never open to others than it shall be, and never takes the place of what is in use."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from plait.model.errors import Conflict, PlaitError

_PRIVATE = 0o600
_PROBE_S = 1.0


def bind(path: Path, mode: int = _PRIVATE, uid: int = -1, gid: int = -1, *, who: str = "a program", hint: str) -> socket.socket:
    """A bound socket; its file has that mode and owner (-1: of this process). A socket that nobody answers on is replaced.

    Conflict if `who` answers there, or if something lies there that is no socket; PlaitError if it cannot be made, with `hint` for what to
    do. Whatever is raised, nothing of this call is left at `path`."""
    try:
        _make_way(path, who, hint)
    except OSError as error:
        raise PlaitError(f"cannot listen on {path}: {error.strerror or error}; {hint}") from error
    sock = socket.socket(socket.AF_UNIX)
    bound = False
    try:
        os.fchmod(sock.fileno(), _PRIVATE)  # bind(2) gives the file this mode (unix(7))
        sock.bind(str(path))
        bound = True
        os.chown(path, uid, gid)
        path.chmod(mode)
    except OSError as error:
        sock.close()
        if bound:
            path.unlink(missing_ok=True)
        raise PlaitError(f"cannot listen on {path}: {error.strerror or error}; {hint}") from error
    return sock


def _make_way(path: Path, who: str, hint: str) -> None:
    """Remove a socket that nobody answers on. OSError if it cannot be told or done."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise Conflict(f"cannot listen on {path}: it is there and is no socket; move it away")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.settimeout(_PROBE_S)
        probe.connect(str(path))
        raise Conflict(f"cannot listen on {path}: {who} answers there already; {hint}")
    path.unlink()
