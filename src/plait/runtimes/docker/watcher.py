# SPDX-License-Identifier: Apache-2.0
"""What runs in the engine -> the agent: events say that something changed, a full list says what.

Data in: the engine's event stream and `GET /containers/json`. Data out: `Operations.report` with the full present list, and `on_list` with
the same list for the collector. Nothing is concluded from silence: while the engine is away the last list stands, and a condition says so;
only a container whose process has ended meanwhile is reported as ended.

The stream is opened before the list is asked for, and resumed from the last event after an interruption, so that nothing falls between.
Inspections (pid, time of start) are asked for when a container is first seen running and after its events; a report waits for
them only a moment, because the engine holds them back while it starts or stops that container.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import structs

from plait.model.cluster import Container
from plait.model.errors import NotFound, PlaitError
from plait.model.report import EngineState
from plait.runtimes.api import Health, Operations
from plait.runtimes.docker.containers import ALIVE, RUNTIME, container_of, with_shared
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerConfig, ContainerDetails, ContainerRow, EngineEvent
from plait.runtimes.docker.processes import birth_of

log = logging.getLogger("plait.docker")
HEALTH_ENGINE = "engine-unreachable"
RESYNC_S = 30.0
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 0.4
DETAILS_S = 0.05
"""How long a report waits for inspections. They come with the next report otherwise."""
_NETWORK_ACTIONS = frozenset({"create", "destroy", "remove"})
_INSPECTED_ACTIONS = ("start", "restart", "die", "health_status")
"""Beginnings of the actions after which an inspection is out of date."""
_EARLY_ACTIONS = ("pause", "unpause")
"""Docker 20.10 tells of these before its list shows them, and never again."""
LATER_S = 0.1


class DockerWatcher:
    """Watches one engine. `on_list` is called with each full list and the inspections there are, `on_networks` when the engine's networks
    may have changed."""

    def __init__(
        self,
        node: str,
        ops: Operations,
        engine: DockerEngine,
        health: Health,
        bridge_network: str,
        on_list: Callable[[Sequence[ContainerRow], Mapping[str, ContainerDetails]], Awaitable[None]],
        on_networks: Callable[[], None],
    ) -> None:
        self._node, self._ops, self._engine, self._health = node, ops, engine, health
        self._bridge, self._on_list, self._on_networks = bridge_network, on_list, on_networks
        self._dirty = asyncio.Event()
        self._since = ""
        self._details: dict[str, ContainerDetails] = {}
        self._configs: dict[str, ContainerConfig] = {}
        self._rows: Sequence[ContainerRow] = ()
        self._births: dict[str, tuple[int, int]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._state: EngineState = {"runtime": RUNTIME, "reachable": False, "version": "", "containers": 0, "error": "not asked yet"}

    @property
    def state(self) -> EngineState:
        """How the engine does, for `plait status`."""
        return self._state

    async def run(self) -> None:
        """Watch until cancelled."""
        wait_s = FIRST_RETRY_S
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._connected(group))
            except* PlaitError as caught:
                error = caught.exceptions[0]
                if self._state["reachable"]:
                    wait_s = FIRST_RETRY_S
                self._state = {**self._state, "reachable": False, "error": str(error)}
                self._health.set(HEALTH_ENGINE, RUNTIME, str(error))
            self._asking.clear()
            await self._report_the_dead()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LAST_RETRY_S)

    async def _connected(self, group: asyncio.TaskGroup) -> None:
        """While the engine answers. Ends with a PlaitError."""
        version = await self._engine.version()
        async with self._engine.events(self._since) as events:
            self._details.clear()
            await self._sync(group)
            self._state = {**self._state, "reachable": True, "version": version.version, "error": ""}
            self._health.clear(HEALTH_ENGINE, RUNTIME)
            self._on_networks()
            log.info("engine_connected", extra={"version": version.version})
            group.create_task(self._keep_synced(group))
            async for event in events:
                self._take(event)

    def _take(self, event: EngineEvent) -> None:
        if event.time_nano:
            self._since = f"{event.time_nano // 10**9}.{event.time_nano % 10**9:09d}"
        if event.type == "network" and event.action in _NETWORK_ACTIONS:
            self._on_networks()
        if event.type == "container" and event.action.startswith(_INSPECTED_ACTIONS):
            self._details.pop(event.actor.id, None)
            if (asking := self._asking.pop(event.actor.id, None)) is not None:
                asking.cancel()
        if event.action in _EARLY_ACTIONS:
            asyncio.get_running_loop().call_later(LATER_S, self._dirty.set)
        self._dirty.set()

    async def _keep_synced(self, group: asyncio.TaskGroup) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):
                    await self._dirty.wait()
            self._dirty.clear()
            await self._sync(group)

    async def _sync(self, group: asyncio.TaskGroup) -> None:
        """One full list -> the agent."""
        self._rows = rows = await self._engine.containers()
        running = {row.id for row in rows if row.state in ALIVE}
        self._details = {key: details for key, details in self._details.items() if key in running}
        self._births = {key: birth for key, birth in self._births.items() if key in running}
        self._configs = {row.id: self._configs[row.id] for row in rows if row.id in self._configs}
        for key in running - self._details.keys() - self._asking.keys():
            self._asking[key] = group.create_task(self._inspect(key))
        if self._asking:
            _, late = await asyncio.wait(self._asking.values(), timeout=DETAILS_S)
            for task in late:
                task.add_done_callback(lambda _: self._dirty.set())
        await self._ops.report(RUNTIME, self._containers(rows))
        self._state = {**self._state, "containers": len(running)}
        await self._on_list(rows, self._details)

    def _containers(self, rows: Sequence[ContainerRow]) -> list[Container]:
        endpoints = self._ops.endpoints(RUNTIME)
        return with_shared(
            container_of(row, self._details.get(row.id), self._node, self._bridge, endpoints, self._configs.get(row.id)) for row in rows
        )

    async def _report_the_dead(self) -> None:
        """Containers whose process ended since they were inspected; each is told once."""
        dead = {key for key, (pid, birth) in self._births.items() if birth_of(pid) != birth}
        if not dead:
            return
        for key in dead:
            del self._births[key]
        self._rows = [structs.replace(row, state="exited", status="") if row.id in dead else row for row in self._rows]
        await self._ops.report(RUNTIME, self._containers(self._rows))

    async def _inspect(self, key: str) -> None:
        try:
            self._details[key] = details = await self._engine.container(key)
            self._configs[key] = details.config
            if (birth := birth_of(details.state.pid)) is not None:
                self._births[key] = details.state.pid, birth
        except NotFound:
            pass
        except PlaitError as error:
            log.debug("container_not_inspected", extra={"container": key[:12], "error": str(error)})
        finally:
            if self._asking.get(key) is asyncio.current_task():
                del self._asking[key]
