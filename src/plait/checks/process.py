# SPDX-License-Identifier: Apache-2.0
"""Checks that run a program of this host: scripts, and `systemctl is-active`.

Each runs in a session and process group of its own, which is killed as a whole at the end: nothing that a check started outlives it, so
that a script that leaves children behind cannot fill the host. Of what it writes the end is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from plait.checks.dial import CheckFailed
from plait.model.discovery import CheckDefinition, Status
from plait.services.health import Result, clipped_tail

_CHUNK, _CHUNKS_AT_ONCE = 65536, 4
_DEATH_S = 0.5
_unreaped: list[subprocess.Popen[bytes]] = []
"""Killed programs that the kernel has not let go yet; looked at again when the next one is started."""
_UNIT_STATES: dict[str, Status] = {
    "active": "passing",
    "reloading": "passing",
    "refreshing": "passing",
    "inactive": "critical",
    "failed": "critical",
    "deactivating": "critical",
}
"""Everything else that systemd may say (activating, maintenance, unknown) leaves open whether the service runs."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended: exit status (negative: killed by that signal), the end of its output and the length of all of it, bytes."""

    code: int
    tail: bytes
    total: int


async def run_script(definition: CheckDefinition) -> Result:
    """Exit status 0 passes, 1 warns, everything else is critical."""
    done = await execute(definition.args, definition.output_max)
    return Result(exit_status(done.code), clipped_tail(done.tail, done.total, definition.output_max))


def exit_status(code: int) -> Status:
    """What a command's exit status says."""
    return "passing" if code == 0 else "warning" if code == 1 else "critical"


async def run_os_service(definition: CheckDefinition) -> Result:
    """Passing while the unit runs, critical while it does not, a warning if nobody can tell."""
    unit = definition.target
    try:
        done = await execute(("systemctl", "is-active", "--", unit), definition.output_max)
    except CheckFailed as error:
        return Result("warning", f'Unable to retrieve the status of "{unit}": {error}')
    state = done.tail.decode("utf-8", "replace").strip().rpartition("\n")[2]
    status = _UNIT_STATES.get(state, "warning")
    if status == "passing":
        return Result("passing", f'The service "{unit}" is running ({state})')
    if status == "critical":
        return Result("critical", f'The service "{unit}" is not running ({state})')
    return Result("warning", f'Unable to tell whether "{unit}" runs: {state or "systemctl says nothing"}')


async def execute(args: Sequence[str], keep: int) -> Done:
    """Run a program with nothing on its standard input and both outputs together; the last `keep` bytes are kept. Give it a timeout:
    when cancelled, it kills the whole group. CheckFailed if the program cannot be started."""
    process = _started(args)
    assert process.stdout is not None
    pidfd, pipe = os.pidfd_open(process.pid), process.stdout.fileno()
    os.set_blocking(pipe, False)
    output = _Output(pipe, keep)
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe, output.read, loop)
    try:
        await _readable(pidfd)
        loop.remove_reader(pipe)
        output.read(loop)
        return Done(process.wait(), bytes(output.tail), output.total)
    finally:
        loop.remove_reader(pipe)
        process.stdout.close()
        await _end(process, pidfd)


def _started(args: Sequence[str]) -> subprocess.Popen[bytes]:
    _unreaped[:] = [process for process in _unreaped if process.poll() is None]
    try:
        return subprocess.Popen(
            args, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, cwd="/"
        )
    except (OSError, ValueError) as error:
        detail = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise CheckFailed(f"cannot run {args[0]}: {detail}") from error


class _Output:
    """The end of what comes out of a pipe."""

    def __init__(self, pipe: int, keep: int) -> None:
        self._pipe, self._keep = pipe, keep
        self.tail, self.total = bytearray(), 0

    def read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what is there, at most some chunks, so that a program that never stops writing does not hold up the loop."""
        for _ in range(_CHUNKS_AT_ONCE):
            try:
                part = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                return
            if not part:
                loop.remove_reader(self._pipe)
                return
            self.total += len(part)
            self.tail += part
            del self.tail[: -self._keep]


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, future)
    try:
        await future
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _end(process: subprocess.Popen[bytes], pidfd: int) -> None:
    """Kill what is left of the group. A process that does not even die (it hangs in the kernel) is left for later, not waited for."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_S):
                await _readable(pidfd)
    finally:
        os.close(pidfd)
        if process.poll() is None:
            _unreaped.append(process)
