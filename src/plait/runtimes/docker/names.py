# SPDX-License-Identifier: Apache-2.0
"""Which container is asking for an address? dockerd says it since 29 only: before, RequestAddress has but a MAC that it drew a moment ago.

Data in: the engine's list of containers, what is remembered of them (`known.py`), what its process has mounted (`mounts.py`). Data out: the
name that the address is to stick to, "" if nobody can be named; a wrong guess costs a remembered address, nothing else, because Join names
the container for certain.

Certain are: a MAC that somebody chose for a container; that the one that asks does not run yet, is on the network and has its root file
system mounted. Where that leaves several, they are being started at the same moment, and Docker 20.10 shows nothing that tells them apart
until the address is given. Then it matters who waits for the answer:

- An engine that starts answers nothing and starts its containers for nobody. A start that is not certain is refused (`Deferred`), the
  engine notes that at the container, and `deferred.py` starts it again as soon as the engine answers, one after another: certain.
- Behind a start that somebody asked for stands a user. The engine asks for one container after another, and is taken to ask in the order in
  which it mounted them. That is mostly so; two that follow each other closely may change places and so swap their addresses. `--ip` or
  `--mac-address` pins one. Where the storage driver mounts nothing, the engine's own lock helps: it holds back the inspection of a
  container that it is starting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from plait.model.addr import IPAddress
from plait.model.cluster import Endpoint
from plait.model.errors import EngineUnavailable, PlaitError
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerRow
from plait.runtimes.docker.known import Known, KnownContainers
from plait.runtimes.docker.mounts import Places, rootfs_places

STARTABLE = frozenset({"created", "exited", "restarting", "dead"})
MOST_CANDIDATES = 32
DECIDE_S = 0.1
SETTLE_S = 0.01
CLAIM_S = 5.0
WHY_DEFERRED = "plait starts this container again as soon as Docker has started"
"""In the error that the engine keeps of a start that was refused; by it the container is found again."""


class Deferred(PlaitError):
    """Several containers of an engine that starts may be the one that asks."""


class StartingNames:
    """Guesses names. Remembers who was named a moment ago. `places` is `mounts.rootfs_places`. `answered`: the engine's process when it
    last answered a question, 0: never. `deferred`: a start may have been refused and is to be looked for, as when the agent starts."""

    def __init__(self, engine: DockerEngine, known: KnownContainers, places: Places = rootfs_places) -> None:
        self._engine, self._known, self.places = engine, known, places
        self._pid = self.answered = 0
        self.deferred = True
        self._claimed: dict[tuple[str, str], tuple[float, str]] = {}
        self._told: dict[tuple[str, str], str] = {}
        self._labels: dict[str, Mapping[str, str]] = {}

    def called_by(self, pid: int) -> None:
        """The engine's process, which is calling; 0 if it cannot be seen. With a new one nothing of before is under way."""
        if pid != self._pid:
            self._pid = pid
            self._claimed.clear()
            self._told.clear()

    def joined(self, network: str, name: str, mac: str) -> None:
        """The container `name` ("": not known yet) has the address of `network` that was asked for with `mac`. Whoever was guessed to
        be it and is not may still come."""
        self._claimed.pop((network, name), None)
        self._told.pop((network, mac), None)
        if name:
            self._claimed = {key: claim for key, claim in self._claimed.items() if claim[1] != mac}

    def certain(self, network: str, mac: str) -> str:
        """Who asked with `mac` for an address of `network`, if the engine said so, or starts, so that the answer was certain; else ""."""
        if (network, mac) in self._told:
            return self._told[network, mac]
        if self._pid == self.answered:
            return ""
        return next((name for (where, name), (_, asked) in self._claimed.items() if where == network and asked == mac), "")

    async def guess(self, network: str, keys: Iterable[str], live: Mapping[str, Endpoint], mac: str) -> str:
        """The name for the next address of `network`, which containers list under one of `keys` (names or ids) and which was asked for
        with `mac`; `live` are the endpoints that there are already. At most about 1 s.
        Deferred if the engine starts and it is not certain."""
        taken = {e.name for e in live.values() if e.network == network}
        wanted = frozenset(keys) | {network}
        known = self._known.on(wanted)
        chosen = [k.name for k in known if k.mac == mac and k.name not in taken]
        if chosen:
            return chosen[0]
        try:
            rows = await self._engine.containers(quick=True)
        except EngineUnavailable:
            return self._unanswered(network, mac, taken, known)
        except PlaitError:
            return ""
        self.answered = self._pid
        self._labels = {row.name: row.labels or {} for row in rows}
        candidates = [row for row in rows if row.state in STARTABLE and _is_on(row, wanted) and row.name not in taken]
        return self._claim(network, mac, await self._starting(candidates))

    async def told(self, network: str, name: str, mac: str) -> str:
        """As `guess`, where the engine says that `name` asks (29 on): only its labels are to be learnt, if the engine answers."""
        with contextlib.suppress(PlaitError):
            self._labels = {row.name: row.labels or {} for row in await self._engine.containers(quick=True)}
            self.answered = self._pid
        self._told[network, mac] = name
        return self._claim(network, mac, [name])

    async def chooser(self, wanted_on: Collection[str], address: IPAddress) -> str:
        """The container whose `--ip` or `--ip6` on one of these Docker networks is `address` and which may be starting; "" if that is not
        certain.
        Deferred if the engine does not answer."""
        try:
            rows = await self._engine.containers(quick=True)
        except EngineUnavailable as error:
            self.deferred = True
            raise Deferred(f"{address} is kept for some containers, and Docker does not say which one asks; {WHY_DEFERRED}") from error
        self._labels = {row.name: row.labels or {} for row in rows}
        found = [row for row in rows if row.state in STARTABLE and address in row.chosen(wanted_on)]
        names = await self._starting(found) if len(found) > 1 else [row.name for row in found]
        return names[0] if len(names) == 1 else ""

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of the container that was named, as the engine said last."""
        return self._labels.get(name) or self._known.labels(name)

    def _unanswered(self, network: str, mac: str, taken: set[str], known: Iterable[Known]) -> str:
        """The engine does not answer, mostly because it starts: what is remembered must do."""
        absent = {k.id: k.name for k in known if k.name not in taken}
        places = self._places(absent)
        mounted = [absent[key] for key in sorted(places or (), key=(places or {}).__getitem__)]
        if self._pid == self.answered:
            return self._claim(network, mac, mounted)
        names = absent.values() if places is None else mounted
        unnamed = [name for name in names if not self._is_claimed(network, name)]
        if len(unnamed) > 1:
            self.deferred = True
            raise Deferred(f"Docker is starting {len(unnamed)} containers and does not say for which of them it asks; {WHY_DEFERRED}")
        return self._claim(network, mac, unnamed)

    async def _starting(self, rows: list[ContainerRow]) -> list[str]:
        """Names of those of `rows` that are being started, the likeliest first."""
        names = {row.id: row.name for row in rows}
        places = self._places(names)
        if places is not None:
            return [names[key] for key in sorted(places, key=places.__getitem__)]
        rows = rows[:MOST_CANDIDATES][::-1]  # the engine lists the newest first; that it starts them in this order is a last resort
        return [row.name for row in (await self._locked(rows) if len(rows) > 1 else rows)]

    def _places(self, containers: Iterable[str]) -> dict[str, int] | None:
        return self.places(self._pid, containers) if self._pid else None

    def _is_claimed(self, network: str, name: str) -> bool:
        return self._claimed.get((network, name), (0.0, ""))[0] > asyncio.get_running_loop().time()

    def _claim(self, network: str, mac: str, names: Sequence[str]) -> str:
        """The first of `names` that was not named a moment ago, else the first; "" of none."""
        if not names:
            return ""
        now = asyncio.get_running_loop().time()
        self._claimed = {key: claim for key, claim in self._claimed.items() if claim[0] > now}
        name = next((name for name in names if not self._is_claimed(network, name)), names[0])
        self._claimed[network, name] = (now + CLAIM_S, mac)
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
    """Whether it is on a network of `wanted` and takes whatever address it is given there."""
    on = (settings for name, settings in row.networks.items() if name in wanted or settings.network_id in wanted)
    return any(not settings.is_chosen for settings in on)
