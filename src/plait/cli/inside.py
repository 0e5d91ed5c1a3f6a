# SPDX-License-Identifier: Apache-2.0
"""Running commands inside a sandbox, and ending what runs there.

Data in: the path of a network namespace, name servers, a command. Data out: this process inside the namespace, a child's pid or exit
status. A sandbox has its own network and its own view of /etc/resolv.conf; files, processes and users are the host's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from plait.cli.common import CommandFailed
from plait.model.errors import NotFound, PlaitError

_Handler = Callable[[int, FrameType | None], Any] | int | None
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # sched.h
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000  # mount.h
_RESOLV_CONF = Path("/etc/resolv.conf")
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these, and a program would inherit that
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit statuses for a command that cannot be started, as shells have them (POSIX, Shell Command Language 2.8.2)."""


def _cannot_run(command: str, error: OSError) -> CommandFailed:
    status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    return CommandFailed(f"cannot run {command!r}: {error.strerror}", status)


def enter(netns: str, dns: Sequence[str], search: str) -> None:
    """Move this process (which must have one thread) into the network namespace at `netns`, with a mount namespace of its own in which
    /etc/resolv.conf names `dns` and `search`, or is the host's if `dns` is empty. PlaitError if the namespace is gone or the kernel
    refuses."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int, what: str) -> None:
        if result:
            raise PlaitError(f"cannot enter the sandbox: {what}: {os.strerror(ctypes.get_errno())}; it needs root")

    try:
        namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"cannot enter the sandbox: its namespace {netns} is gone; remove the sandbox with `plait rm`") from error
    try:
        checked(libc.setns(namespace, _CLONE_NEWNET), f"setns {netns}")
    finally:
        os.close(namespace)
    checked(libc.unshare(_CLONE_NEWNS), "unshare the mounts")
    checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "keep the mounts to itself")
    if not dns:
        return
    with tempfile.NamedTemporaryFile("w", dir="/run", prefix="plait-resolv-") as source:  # the mount outlives the file's name
        source.write("".join(f"nameserver {address}\n" for address in dns) + f"search {search}\noptions ndots:1\n")
        source.flush()
        os.fchmod(source.fileno(), 0o644)
        target = os.fsencode(_RESOLV_CONF)
        checked(libc.mount(os.fsencode(source.name), target, None, _MS_BIND, None), f"mount over {_RESOLV_CONF}")


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by `command`; CommandFailed with a shell's status if it cannot be executed."""
    sys.stdout.flush()
    for number in _PYTHONS:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise _cannot_run(command[0], error) from error


def start(command: Sequence[str], detached: bool) -> int:
    """Start `command` as a child and return its pid; errors as in `become`. `detached`: in its own session, without input and output."""
    actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)] if detached else []
    reset = [*_PYTHONS, *_TERMINAL]
    sys.stdout.flush()
    try:
        return os.posix_spawnp(command[0], list(command), os.environ, file_actions=actions, setsid=detached, setsigdef=reset)
    except OSError as error:
        raise _cannot_run(command[0], error) from error


class Foreground:
    """While the block runs, signals that mean the command go to it: those of the terminal reach it by themselves (same process
    group), the others are passed on to `pid` once it is set. Those that came before are delivered then."""

    def __init__(self) -> None:
        self._pid = 0
        self._pending: list[int] = []
        self._before: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> Foreground:
        for number in _TERMINAL:
            self._before[number] = signal.signal(number, signal.SIG_IGN)
        for number in _FORWARDED:
            self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
        else:
            self._pending.append(number)

    def wait(self, pid: int) -> int:
        """The exit status of child `pid` when it has ended; 128 + N if signal N ended it."""
        self._pid = pid
        for number in self._pending:
            os.kill(pid, number)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self._pid = 0  # from here on the number may belong to somebody else
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return 128 - code if code < 0 else code


def stop_all(netns: str, patience_s: float) -> None:
    """End every process in the namespace: SIGTERM, after `patience_s` SIGKILL. Never touches this process's own namespace."""
    try:
        wanted = _identity(netns)
    except FileNotFoundError:
        return
    if wanted == _identity("/proc/self/ns/net"):
        raise PlaitError(f"{netns} is the namespace of this very process: nothing was stopped")
    deadline = time.monotonic() + patience_s
    told: set[int] = set()
    while (inside := _members(wanted)) and time.monotonic() < deadline:
        for pid in inside - told:
            _send(pid, signal.SIGTERM, wanted)
        told |= inside
        time.sleep(0.02)
    for pid in inside:
        _send(pid, signal.SIGKILL, wanted)


def _identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _members(namespace: tuple[int, int]) -> set[int]:
    """The processes whose network namespace it is; those that may not be looked into count as outside."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_in(int(entry.name), namespace)}


def _is_in(pid: int, namespace: tuple[int, int]) -> bool:
    try:
        return _identity(f"/proc/{pid}/ns/net") == namespace
    except OSError:
        return False


def _send(pid: int, number: signal.Signals, namespace: tuple[int, int]) -> None:
    """Signal the process if it (not a later one of the same number) is in the namespace."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _is_in(pid, namespace):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
