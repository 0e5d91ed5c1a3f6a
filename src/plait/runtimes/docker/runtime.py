# SPDX-License-Identifier: Apache-2.0
"""Docker on one node, put together: the plug-in's socket, the watcher, the networks and the collector on one engine.

Data in: the agent's operations, a durable map, where the sockets are. Data out: one task to run, and what `plait status` shows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plait.model.report import EngineState
from plait.runtimes.api import Health, Operations
from plait.runtimes.docker.bridgeports import BridgePorts
from plait.runtimes.docker.collector import Collector
from plait.runtimes.docker.deferred import DeferredStarts
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.known import KnownContainers
from plait.runtimes.docker.networks import DockerNetworks
from plait.runtimes.docker.plugin import DockerPlugin, inherited_socket
from plait.runtimes.docker.state import DockerState
from plait.runtimes.docker.watcher import DockerWatcher


class DockerRuntime:
    """`ready()`: the view of the cluster is current (see `DockerNetworks`). `default_network` is what the engine's own bridge is in;
    `find_port` and `on_port`: see `BridgePorts`."""

    def __init__(
        self,
        node: str,
        ops: Operations,
        state: DockerState,
        engine: DockerEngine,
        health: Health,
        default_network: str,
        ready: Callable[[], bool],
        find_port: Callable[[str], str],
        on_port: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.networks = DockerNetworks(ops, state, engine, health, default_network, ready)
        self._known, self.ports = KnownContainers(state), BridgePorts(state, find_port, on_port)
        self.plugin = DockerPlugin(ops, engine, self.networks, self._known)
        self._deferred = DeferredStarts(engine, self.plugin.names)
        self._collector = Collector(ops, engine, self.plugin.driver.age, self.plugin.ipam.age)
        self.watcher = DockerWatcher(node, ops, engine, health, default_network, self._listed, self.networks.mark)

    async def _listed(self, rows: Sequence[ContainerRow], details: Mapping[str, ContainerDetails]) -> None:
        await self.ports.learn(rows, details)
        await self._known.learn(rows, details)
        self._deferred.listed(rows)
        await self._collector.collect(rows, details)

    async def start(self, path: Path) -> None:
        """Answer dockerd from now on, on the socket that systemd passed for `path`, else on a new one there. To be called as early as
        possible: dockerd waits for the plug-in while it starts."""
        await self.plugin.start(path, inherited_socket(path, os.environ, os.getpid()))

    async def run(self) -> None:
        """Watch the engine, keep the networks equal and start what was deferred until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watcher.run())
            group.create_task(self.networks.run())
            group.create_task(self._deferred.run())

    async def close(self) -> None:
        await self.plugin.close()
        await self.engine.close()

    def networks_changed(self) -> None:
        """To be called when the cluster's networks may have changed."""
        self.networks.mark()

    @property
    def state(self) -> EngineState:
        return self.watcher.state
