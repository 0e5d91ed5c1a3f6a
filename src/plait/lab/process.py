# SPDX-License-Identifier: Apache-2.0
"""Processes and their network namespaces: who they are, whether they still are, and how they end.

A process is known by its pid together with its start time, so that a reused pid is never taken for it; it is signalled through
a pidfd. Every function that acts refuses the machine's own network namespace. Source: pidfd_open(2), proc_pid_stat(5).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.model.errors import PlaitError

REST_S = 0.25


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `start` is in clock ticks since the machine's boot, `net` the inode of its network namespace."""

    pid: int
    start: int
    net: int


class Refused(PlaitError):
    """The target is the machine's own network namespace. Nothing was done."""


def boot_id() -> str:
    """The machine's boot: a start time means something only within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Process | None:
    """What runs as `pid` now, or None. A zombie is None: it holds nothing any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else Process(pid, int(fields[19]), net_inode(pid))
    except OSError:
        return None


def net_inode(pid: int | str) -> int:
    """Inode of the network namespace of `pid`. OSError when it is gone."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def is_alive(process: Process) -> bool:
    """Whether exactly this process still runs in its namespace."""
    return identify(process.pid) == process


def forbid_machine(net: int) -> None:
    """Raise Refused if `net` is the namespace of this process or of the machine's first one (where that may be seen)."""
    own = {net_inode("self")}
    with contextlib.suppress(PermissionError):
        own.add(net_inode(1))
    if net in own:
        raise Refused(f"network namespace {net} is this machine's own: the lab touches only namespaces that it made itself")


def members(nets: set[int]) -> Iterator[Process]:
    """Every process whose network namespace is one of `nets`, in no order."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (process := identify(int(entry.name))) and process.net in nets:
            yield process


def kill(process: Process, timeout_s: float = 10.0) -> None:
    """SIGKILL `process` and wait until it is gone; a process that is gone already is success. Refused if it shares the
    machine's network namespace; PlaitError after `timeout_s`."""
    forbid_machine(process.net)
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if not is_alive(process):
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        if not select.select([fd], [], [], timeout_s)[0]:
            raise PlaitError(f"kill process {process.pid}: still there after {timeout_s:.0f} s; look at /proc/{process.pid}/stack")
    finally:
        os.close(fd)


def kill_namespaces(holders: list[Process], timeout_s: float = 10.0) -> None:
    """End the holders and every process in their network namespaces, machine-wide. Idempotent.

    A namespace's inode is trusted only while its holder lives: afterwards the kernel may give the number to somebody else.
    """
    nets = {holder.net for holder in holders if is_alive(holder)}
    for net in nets:
        forbid_machine(net)
    strays = [process for process in members(nets) if process not in holders]
    for holder in holders:
        kill(holder, timeout_s)
    for process in strays:
        kill(process, timeout_s)


def until(what: str, check: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> None:
    """Call `check` until it is true. PlaitError after `timeout_s`, naming `what`. Between two calls pass `every_s`, or as long as the last
    call took if that was longer (at most REST_S): asking by a command does not keep a processor all the time from what is waited for."""
    end = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        if check():
            return
        now = time.monotonic()
        if now > end:
            raise PlaitError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(max(every_s, min(now - began, REST_S)))
