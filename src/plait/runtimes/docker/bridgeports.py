# SPDX-License-Identifier: Apache-2.0
"""Which links of the host lead to the containers of the engine's default bridge.

Data in: full lists of the engine, inspections, what looks for the port that leads into a namespace. Data out: a port for each running
container there, by its id. An attachment keeps its link for as long as it lasts, so each is looked for once, when its container's
process is known, and remembered over restarts of the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from plait.model.hostlinks import BridgePort
from plait.runtimes.docker.containers import ALIVE, BRIDGE
from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.state import PORTS, DockerState


class BridgePorts:
    """`find`: the link of the bridge that leads into the namespace at a path, "" for none; it may block. `changed` is called when a port is
    found."""

    def __init__(self, state: DockerState, find: Callable[[str], str], changed: Callable[[], None]) -> None:
        self._state, self._find, self._changed = state, find, changed

    @property
    def known(self) -> Mapping[str, BridgePort]:
        """By container. Its link may be gone by now."""
        return {id_: BridgePort(port["dev"], port["mac"]) for id_, port in self._state.all(PORTS).items()}

    async def learn(self, rows: Sequence[ContainerRow], details: Mapping[str, ContainerDetails]) -> None:
        """`rows` is the full list."""
        attached = {row.id: row.networks[BRIDGE] for row in rows if row.state in ALIVE and BRIDGE in row.networks}
        for id_, port in self._state.all(PORTS).items():
            if id_ not in attached or attached[id_].endpoint_id != port["endpoint"]:
                await self._state.delete(PORTS, id_)
        for id_, settings in attached.items():
            pid = details[id_].state.pid if id_ in details else 0
            if not pid or not settings.mac_address or self._state.get(PORTS, id_) is not None:
                continue
            if dev := await asyncio.to_thread(self._find, f"/proc/{pid}/ns/net"):
                await self._state.put(PORTS, id_, {"endpoint": settings.endpoint_id, "dev": dev, "mac": settings.mac_address.lower()})
                self._changed()
