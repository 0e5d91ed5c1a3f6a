# SPDX-License-Identifier: Apache-2.0
"""Which container is asking for an address? dockerd does not say: RequestAddress has only a MAC that it drew a moment ago.

Data in: the engine's list of containers. Data out: the name that the address is to stick to, "" if nobody can be named; a wrong guess
costs a remembered address, nothing else, because Join names the container for certain.

A container that is being started is listed as one that does not run yet and has the network among its settings. Where several are, the
engine's own lock tells them apart: it holds back the inspection of the one it is starting and answers for the others at once (Docker 20.10:
measured). While dockerd itself starts, it restarts containers and answers nothing; then the names come back that its clean-up gave up just
before, the last one first. So containers that are started at the same moment may swap their addresses; `--ip` pins one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping

from plait.model.cluster import Endpoint
from plait.model.errors import EngineUnavailable, PlaitError
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerRow

STARTABLE = frozenset({"created", "exited", "restarting", "dead"})
MOST_CANDIDATES = 32
DECIDE_S = 0.1
SETTLE_S = 0.01
CLAIM_S = 5.0
REMEMBER_S = 120.0


class StartingNames:
    """Guesses names. Remembers who left lately and who was named a moment ago."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._left: dict[str, deque[tuple[str, float]]] = {}
        self._claimed: dict[tuple[str, str], float] = {}

    def left(self, network: str, name: str) -> None:
        """The container `name` gave up its address of `network` just now."""
        now = asyncio.get_running_loop().time()
        queue = self._left.setdefault(network, deque(maxlen=1024))
        queue.append((name, now))

    def joined(self, network: str, name: str) -> None:
        """The container `name` has got its address of `network`."""
        self._claimed.pop((network, name), None)

    async def guess(self, network: str, keys: Iterable[str], live: Mapping[str, Endpoint]) -> str:
        """The name for the next address of `network`, which containers list under one of `keys` (names or ids); `live` are the
        endpoints that there are already. At most about 1 s."""
        taken = {e.name for e in live.values() if e.network == network}
        try:
            rows = await self._engine.containers(quick=True)
        except EngineUnavailable:
            return self._from_memory(network, taken)
        except PlaitError:
            return ""
        wanted = frozenset(keys) | {network}
        candidates = [row for row in rows if row.state in STARTABLE and _is_on(row, wanted) and row.name not in taken]
        return await self._choose(network, candidates)

    def _from_memory(self, network: str, taken: set[str]) -> str:
        oldest = asyncio.get_running_loop().time() - REMEMBER_S
        queue = self._left.get(network, deque())
        while queue:
            name, when = queue.pop()
            if when >= oldest and name not in taken:
                return name
        return ""

    async def _choose(self, network: str, candidates: list[ContainerRow]) -> str:
        now = asyncio.get_running_loop().time()
        self._claimed = {key: until for key, until in self._claimed.items() if until > now}
        if len(candidates) > 1:
            # The engine lists the newest first. What is started together is mostly started in the order of its creation.
            candidates = await self._locked(candidates[:MOST_CANDIDATES][::-1])
        if not candidates:
            return ""
        free = [row.name for row in candidates if (network, row.name) not in self._claimed]
        name = (free or [candidates[0].name])[0]
        self._claimed[network, name] = now + CLAIM_S
        return name

    async def _locked(self, rows: list[ContainerRow]) -> list[ContainerRow]:
        """Those of `rows` whose inspection the engine holds back, in their order."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(self._inspect(row)): row for row in rows}
            end = loop.time() + DECIDE_S
            waiting = set(tasks)
            while len(waiting) > 1 and loop.time() < end:
                _, waiting = await asyncio.wait(waiting, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=SETTLE_S)
            for task in waiting:
                task.cancel()
        return [row for task, row in tasks.items() if task in waiting]

    async def _inspect(self, row: ContainerRow) -> None:
        try:
            await self._engine.container(row.id)
        except PlaitError:
            pass


def _is_on(row: ContainerRow, wanted: frozenset[str]) -> bool:
    return any(name in wanted or settings.network_id in wanted for name, settings in row.networks.items())
