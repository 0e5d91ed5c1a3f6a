# SPDX-License-Identifier: Apache-2.0
"""Containers whose start was refused while the engine started (`names.Deferred`), and those with a restart policy that the engine could not
start because the agent was away -> started again, one after another.

Data in: full lists of the engine, and that a start was refused. Data out: `POST /containers/<id>/start`. Which containers they are the
engine itself remembers, in the error of their last start, so that neither an end of the agent nor one of the engine loses any: whoever
comes after looks again. A container that was started, removed or failed for another reason meanwhile has that error no more.

An engine that misses its plug-in at boot gives a container up for good after 15 s, whatever its restart policy (seen with 20.10). One that
never ran is left alone: whoever made it has seen the error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from plait.model.errors import EngineUnavailable, PlaitError
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.names import STARTABLE, WHY_DEFERRED, StartingNames

log = logging.getLogger("plait.docker")
_AWAY = ('plugin "plait" not found', "plait.sock")
"""What the engine says of a start that missed the agent: it found no socket, or nobody behind it."""


class DeferredStarts:
    """Of one engine."""

    def __init__(self, engine: DockerEngine, names: StartingNames) -> None:
        self._engine, self._names = engine, names
        self._rows: asyncio.Queue[Sequence[ContainerRow]] = asyncio.Queue()

    def listed(self, rows: Sequence[ContainerRow]) -> None:
        """The engine's full list, and so an engine that has started."""
        if self._names.deferred:
            self._names.deferred = False
            self._rows.put_nowait([row for row in rows if row.state in STARTABLE])

    async def run(self) -> None:
        """Start what is to be started until cancelled."""
        while True:
            for row in await self._rows.get():
                try:
                    await self._start(row)
                except EngineUnavailable:
                    self._names.deferred = True
                    break
                except PlaitError as error:
                    log.warning("deferred_start_failed", extra={"container": row.name, "error": str(error)})

    async def _start(self, row: ContainerRow) -> None:
        if row.networks and _is_owed(row, await self._engine.container(row.id)):
            await self._engine.start_container(row.id)
            log.info("deferred_start", extra={"container": row.name})


def _is_owed(row: ContainerRow, details: ContainerDetails) -> bool:
    """Whether its last start failed for no reason of its own, and is to be made good."""
    missed = row.state == "exited" and details.restarts and any(words in details.state.error for words in _AWAY)
    return missed or WHY_DEFERRED in details.state.error
