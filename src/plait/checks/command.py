# SPDX-License-Identifier: Apache-2.0
"""Checks that run a command inside a container, through the container's engine.

An engine cannot end a command that it has started. So a command that hangs is remembered, and as long as it runs no further one is started
beside it: a check that hangs costs its container one process, not one per interval.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from typing import Protocol

from plait.checks.dial import CheckFailed
from plait.checks.process import Done, exit_status
from plait.model.discovery import CheckDefinition
from plait.model.errors import NotFound, PlaitError
from plait.services.health import Result, clipped_tail


class Commands(Protocol):
    """What runs commands in containers."""

    async def exec_start(self, container: str, args: Sequence[str]) -> str:
        """Make the command ready, its id. NotFound or Conflict if the container does not run."""
        ...

    async def exec_output(self, key: str, keep: int) -> tuple[bytes, int]:
        """Run it until it ends: the last `keep` bytes that it wrote and the length of all, bytes. To be given a timeout."""
        ...

    async def exec_code(self, key: str) -> int | None:
        """Its exit status, None while it runs."""
        ...


class ContainerRuns:
    """Runs of docker checks; remembers those that hang."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._hanging: dict[tuple[str, tuple[str, ...]], str] = {}

    async def run(self, definition: CheckDefinition) -> Result:
        """Exit status 0 passes, 1 warns, everything else is critical."""
        args = shell_args(definition)
        job = definition.target, args
        try:
            await self._no_longer_hangs(job)
            key = await self._commands.exec_start(definition.target, args)
            self._hanging[job] = key
            tail, total = await self._commands.exec_output(key, definition.output_max)
            code = await self._commands.exec_code(key)
        except PlaitError as error:
            self._hanging.pop(job, None)
            raise CheckFailed(str(error)) from error
        if code is None:
            raise CheckFailed(f"the command closed its output in container {definition.target} and still runs")
        del self._hanging[job]
        done = Done(code, tail, total)
        return Result(exit_status(done.code), clipped_tail(done.tail, done.total, definition.output_max))

    async def _no_longer_hangs(self, job: tuple[str, tuple[str, ...]]) -> None:
        key = self._hanging.get(job)
        if key is None:
            return
        with contextlib.suppress(NotFound):
            if await self._commands.exec_code(key) is None:
                raise StillRuns(f"the command of an earlier run still runs in container {job[0]}; no further one is started beside it")
        del self._hanging[job]


class StillRuns(CheckFailed):
    """The run before has not ended."""


def shell_args(definition: CheckDefinition) -> tuple[str, ...]:
    """The command as given, or through the check's shell: a single argument is a script then, several are a command line."""
    if not definition.shell:
        return definition.args
    script = definition.args[0] if len(definition.args) == 1 else shlex.join(definition.args)
    return definition.shell, "-c", script
