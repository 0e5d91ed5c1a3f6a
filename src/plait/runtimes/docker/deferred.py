# SPDX-License-Identifier: Apache-2.0
"""Containers whose start was refused while the engine started (`names.Deferred`) -> started again, one after another.

Data in: full lists of the engine, and that a start was refused. Data out: `POST /containers/<id>/start`. Which containers they are the
engine itself remembers, in the error of their last start, so that neither an end of the agent nor one of the engine loses any: whoever
comes after looks again. A container that was started, removed or failed for another reason meanwhile has that error no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from plait.model.errors import EngineUnavailable, PlaitError
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerRow
from plait.runtimes.docker.names import STARTABLE, WHY_DEFERRED, StartingNames

log = logging.getLogger("plait.docker")


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
        if row.networks and WHY_DEFERRED in (await self._engine.container(row.id)).state.error:
            await self._engine.start_container(row.id)
            log.info("deferred_start", extra={"container": row.name})
