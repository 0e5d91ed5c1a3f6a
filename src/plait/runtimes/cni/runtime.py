# SPDX-License-Identifier: Apache-2.0
"""CNI and netavark on one node, put together: the socket of the shim, the attachments, the files that engines read.

Data in: the agent's operations and what it knows of the host, a durable map, where the files are. Data out: one task to run.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from plait.model.errors import PlaitError
from plait.runtimes.api import Health
from plait.runtimes.cni.attachments import Attachments, Load, Save
from plait.runtimes.cni.files import Places, WriteFile, install_shim, sync_conflists
from plait.runtimes.cni.host import Host, inode_of
from plait.runtimes.cni.plugin import CniPlugin
from plait.runtimes.cni.server import PluginServer
from plait.runtimes.netavark.plugin import NetavarkPlugin

log = logging.getLogger("plait.cni")
LOOK_S = 5.0
"""Between two looks for namespaces that are gone and removals that were left."""


class CniRuntime:
    """`socket`: where the shim finds the agent; `spool`: where it leaves removals."""

    def __init__(
        self, node: str, host: Host, load: Load, save: Save, places: Places, write: WriteFile, health: Health, socket: Path, spool: Path
    ) -> None:
        self._host, self._places, self._write, self._health = host, places, write, health
        self._kinds = [Attachments(runtime, node, host.ops, load, save, inode_of) for runtime in ("cni", "netavark")]
        cni, netavark = self._kinds
        self.server = PluginServer(CniPlugin(cni, host), NetavarkPlugin(netavark, host), socket, spool)
        self._dirty = asyncio.Event()

    async def start(self) -> None:
        """Know what there is, carry out what was left, then answer."""
        for attachments in self._kinds:
            await attachments.recover()
        await self.server.start()
        self._install()

    async def run(self) -> None:
        """Keep the files equal to the networks and give back what nobody uses. Never returns."""
        while True:
            self._dirty.clear()
            self._write_conflists()
            await self.server.drain()
            for attachments in self._kinds:
                await attachments.reap()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._dirty.wait()
            except TimeoutError:
                pass

    def vanished(self) -> set[str]:
        """Ids of endpoints whose namespace is gone, until they are given back."""
        return {key for attachments in self._kinds for key in attachments.vanished()}

    async def close(self) -> None:
        await self.server.stop()

    def networks_changed(self) -> None:
        """To be called when the cluster's networks may have changed."""
        self._dirty.set()

    def _install(self) -> None:
        try:
            install_shim(self._places, self._write)
            self._health.clear("cni-files", "plug-in")
        except PlaitError as error:
            self._health.set("cni-files", "plug-in", str(error))

    def _write_conflists(self) -> None:
        networks = self._host.ops.networks()
        if not networks:  # nothing is known yet, which is no reason to remove anything
            return
        try:
            problems = sync_conflists(self._places, networks, self._write)
        except PlaitError as error:
            problems = {"directory": str(error)}
        self._health.replace("cni-network", problems)
