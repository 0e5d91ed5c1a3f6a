# SPDX-License-Identifier: Apache-2.0
"""How far the other nodes are: measured by ICMP echo between their underlay addresses, kept as this node's network coordinate.

Data in: the living nodes, the coordinates they published. Data out: round trips, and now and then a new coordinate of this node in the
store. The other end's kernel answers, so that a busy agent there is no distance. Whoever does not answer (a firewall) is not measured;
its coordinate stays what it was.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from plait.agent.echo import Probe
from plait.model.addr import IPAddress
from plait.model.errors import PlaitError
from plait.model.kv import Coordinate
from plait.services.coordinates import Locator

log = logging.getLogger("plait.roundtrips")
EVERY_S, FIRST_EVERY_S, FIRST = 5.0, 0.5, 20
"""Between two measurements: at rest, and for the first ones after the start."""
PUBLISH_EVERY_S = 15.0
"""Least time between two coordinates in the store."""
MOVED_S, MOVED_PART = 0.0005, 0.1
"""So far (in seconds, and as a part of its distance from the origin) the coordinate has to move before it is published again."""


class RoundTrips:
    """`peers` gives the living others by name; `known` what the store says of a node; `publish` makes one durable, StoreUnavailable if it
    cannot."""

    def __init__(
        self,
        node: str,
        peers: Callable[[], Mapping[str, IPAddress]],
        known: Callable[[str], Coordinate],
        publish: Callable[[Coordinate], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._peers, self._known, self._publish, self._clock = node, peers, known, publish, clock
        self._locator: Locator | None = None
        self._round: list[str] = []
        self._published_at = -math.inf
        self.measured = 0

    async def run(self, probe: Probe) -> None:
        """Never returns."""
        while True:
            pause = FIRST_EVERY_S if self.measured < FIRST else EVERY_S
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            await self.measure(probe)

    async def measure(self, probe: Probe) -> None:
        """One peer after the other, each once in a round of random order; the store hears of it when that has moved this node."""
        peers = self._peers()
        self._round = [name for name in self._round if name in peers] or random.sample(sorted(peers), len(peers))
        if not self._round:
            return
        name = self._round.pop()
        rtt_s = (await probe.ask(peers[name])).rtt_s
        if rtt_s is None:
            log.debug("round_trip_unanswered", extra={"node": name})
            return
        if self._locator is None:  # the store is known by now, so a restart goes on from where it was
            self._locator = Locator(self._known(self._node), lambda: random.uniform(-0.5, 0.5))
        if self._locator.observe(name, self._known(name), rtt_s):
            self.measured += 1
            await self._tell(self._locator.coordinate)

    async def _tell(self, coordinate: Coordinate) -> None:
        told, now = self._known(self._node), self._clock()
        moved = math.dist(told.vec, coordinate.vec) + abs(told.height - coordinate.height) + abs(told.adjustment - coordinate.adjustment)
        far = max(MOVED_S, MOVED_PART * (math.hypot(*told.vec) + told.height))
        fresh = told == Coordinate(self._node) and self.measured >= FIRST // 2
        if not (moved > far or fresh) or now - self._published_at < PUBLISH_EVERY_S:
            return
        self._published_at = now
        try:
            await self._publish(coordinate)
        except PlaitError as error:  # the next one that is far enough is told
            log.debug("coordinate_unpublished", extra={"error": str(error)})
