# SPDX-License-Identifier: Apache-2.0
"""How large a packet may be on the way to each other node: probed, kept, and followed when the way changes in either direction.

Data in: the other nodes and the largest packet that both ends' links allow. Data out: per node what the way between them lets through,
and a call when that has changed. A probe is an echo request that must not be fragmented. A router that says what it can pass on
(RFC 1191) is believed once a packet of that size was answered; where nobody says anything (a black hole, RFC 2923) the size is
searched by halves as RFC 8899 does. Only this direction is measured: Linux answers in fragments if its own way is narrower, and the
node at the other end measures that.

A node that answers no echo at all is not measured; what was known of it holds, or the ends' own links do.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass

from plait.agent.echo import SHORTEST, Probe
from plait.agent.journal import Journal, Write
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot

log = logging.getLogger("plait.pathmtu")
FLOOR = 576
"""Every IPv4 path must carry this (RFC 1122, section 3.3.3), bytes."""
EVERY_S = 2.0
"""Between two probes to one node while there are few; with many, `APART_S` between any two."""
APART_S = 0.05
TRIES = 3
"""A size is too large if this many requests go unanswered while a short one is answered."""
PATIENCE_S = 1.0
LEAST_PATIENCE_S, ROUND_TRIPS = 0.1, 4.0
"""How long a long request is waited for: some round trips of a short one, within these bounds."""


@dataclass(frozen=True, slots=True)
class Way:
    """To another node: its underlay address and the smaller MTU of both ends' links, bytes."""

    address: IPAddress
    ceiling: int


async def probe_path(probe: Probe, way: Way, last: int = 0) -> int | None:
    """The largest packet that reaches the other end, bytes (`FLOOR` to `way.ceiling`); None if it answers no echo. `last` is what was found
    the time before, and is looked at first when the ceiling is too much."""
    found = await _Search(probe, way.address).run(way.ceiling, last)
    return found and max(found, min(FLOOR, way.ceiling))


class _Search:
    """One search. Between `passed`, which was answered, and `lost`, which was not, lies what is not known yet."""

    def __init__(self, probe: Probe, address: IPAddress) -> None:
        self._probe, self._address = probe, address
        self._patience_s = PATIENCE_S

    async def run(self, ceiling: int, last: int) -> int | None:
        told = await self._passes(ceiling, tries=1)
        if told == ceiling:
            return ceiling
        if told and (found := await self._believed(told, ceiling)):
            return found
        short = await self._probe.ask(self._address, SHORTEST, PATIENCE_S)
        if short.rtt_s is None:
            return None
        self._patience_s = min(PATIENCE_S, max(LEAST_PATIENCE_S, ROUND_TRIPS * short.rtt_s))
        return await self._halved(ceiling, last)

    async def _believed(self, told: int, below: int) -> int:
        """Follow what routers say, each smaller than the one before, to a size that passes; 0 if that leads nowhere."""
        while FLOOR <= told < below:
            below, told = told, await self._passes(told)
            if told == below:
                return told
        return 0

    async def _halved(self, ceiling: int, last: int) -> int:
        passed, lost = SHORTEST, ceiling + 1
        guesses = [last + 1, last, ceiling] if FLOOR <= last < ceiling else [ceiling]
        while lost - passed > 1:
            size = guesses.pop() if guesses else (max(passed, FLOOR - 1) + lost) // 2
            if not passed < size < lost:
                continue
            if await self._passes(size) == size:
                passed = size
            else:
                lost = size
            if lost <= FLOOR:
                break
        return passed

    async def _passes(self, size: int, tries: int = TRIES) -> int:
        """`size` if a packet of it was answered, a smaller number if a router said so, else 0."""
        for _ in range(tries):
            echoed = await self._probe.ask(self._address, size, self._patience_s)
            if echoed.rtt_s is not None:
                return size
            if 0 < echoed.told < size:
                return echoed.told
        return 0


def ways(snapshot: Snapshot) -> dict[str, Way]:
    """To the living others, by name; empty while this node is not part of the cluster."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None:
        return {}
    others = (snapshot.nodes[name] for name in snapshot.alive & snapshot.nodes.keys() - {me.name})
    return {node.name: Way(node.address, min(me.mtu, node.mtu)) for node in others}


class PathMtus:
    """`snapshot` gives the nodes; `keep` makes one node's figure durable (None: nothing to keep of it); `changed` is called after that,
    with True if the way has become wider. `known` is what an earlier run kept."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        keep: Callable[[str, int | None], Awaitable[None]],
        changed: Callable[[bool], None],
        known: Mapping[str, int],
    ) -> None:
        self._snapshot, self._keep, self._changed = snapshot, keep, changed
        self._known = dict(known)
        self._answered: set[str] = set()

    @property
    def known(self) -> Mapping[str, int]:
        """Bytes by node, of those whose way is narrower than both ends' links."""
        return self._known

    @property
    def answered(self) -> Set[str]:
        """Nodes that answered when they were last asked."""
        return self._answered

    async def run(self, probe: Probe) -> None:
        """Round after round. Never returns."""
        while True:
            found = ways(self._snapshot())
            self._answered &= found.keys()
            pause_s = max(APART_S, EVERY_S / max(1, len(found)))
            async with asyncio.TaskGroup() as group:
                for name in random.sample(sorted(found), len(found)):
                    group.create_task(self.measure(probe, name, found[name]))
                    await asyncio.sleep(pause_s)
            if not found:
                await asyncio.sleep(EVERY_S)

    async def measure(self, probe: Probe, name: str, way: Way) -> None:
        """Probe one way and make known what has changed."""
        before = self._known.get(name)
        found = await probe_path(probe, way, before or 0)
        if found is None:
            self._answered.discard(name)
            return
        self._answered.add(name)
        now = found if found < way.ceiling else None
        if now == before:
            return
        self._known = {other: mtu for other, mtu in self._known.items() if other != name} | ({name: now} if now else {})
        log.info("path_mtu", extra={"node": name, "mtu": found, "limit": way.ceiling})
        await self._keep(name, now)
        self._changed(before is not None and found > before)


def durable_path_mtus(journal: Journal, snapshot: Callable[[], Snapshot], changed: Callable[[bool], None]) -> PathMtus:
    """With what the journal has kept of them, and keeps."""

    async def keep(node: str, mtu: int | None) -> None:
        await journal.write([Write("path_mtu", node, str(mtu).encode() if mtu else None)])

    return PathMtus(snapshot, keep, changed, {node: int(body) for node, body in journal.load("path_mtu").items()})
