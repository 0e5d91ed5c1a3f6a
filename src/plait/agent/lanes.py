# SPDX-License-Identifier: Apache-2.0
"""Which of the other nodes this one reaches, and how: probed, and made known as this node's `Reach`.

Data in: the other nodes, the tunnel devices of the networks. Data out: a new `Reach` whenever that changed, and what was measured of each
lane. A lane is the own link (an echo request from the tunnel address to the other's underlay address that no router passes on) or a
tunnel device (one between the tunnel addresses, through that device whatever the routes say). The answer comes back by whatever path the
other node has chosen, so that each direction is judged by itself as long as there is any way back.

A tunnel counts as working until `TRIES` requests in a row were lost, the link as not shared until one was answered; what was given up is
believed again after `STEADY` rounds with an answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from plait.agent.echo import Lane, LaneAbsent, LaneProbe
from plait.model.cluster import Reach, Snapshot
from plait.plan import linkable, tunnel_devices

log = logging.getLogger("plait.lanes")
EVERY_S, APART_S = 1.0, 0.02
"""Between two rounds while there are few nodes; with many, between any two probes."""
PATIENCE_S, LEAST_PATIENCE_S, ROUND_TRIPS = 1.0, 0.5, 8.0
"""How long an answer is waited for: some of the round trips that the last one took, within these bounds."""
TRIES, STEADY = 3, 3
TELL_S = 0.5
"""Least time between two publications."""
KEPT = 50
"""So many outcomes are remembered, for the loss that people are shown."""
LINK = ""
"""The lane without a tunnel, by the name of its device."""
LaneKey = tuple[str, str]
"""Node, device."""


@dataclass(slots=True)
class Measured:
    """What is known of one lane. `up` None: nothing yet. `rtt_s` is that of the last answer."""

    up: bool | None = None
    rtt_s: float | None = None
    streak: int = 0
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=KEPT))

    @property
    def patience_s(self) -> float:
        return PATIENCE_S if self.rtt_s is None else min(PATIENCE_S, max(LEAST_PATIENCE_S, ROUND_TRIPS * self.rtt_s))

    @property
    def loss(self) -> float:
        """Part of the last requests that went unanswered, 0 to 1."""
        return self.outcomes.count(False) / len(self.outcomes) if self.outcomes else 0.0

    def took(self, rtt_s: float | None) -> None:
        """One request came to this. The answers in a row that make a lane count again are those of different rounds (`Lanes.measure`)."""
        answered = rtt_s is not None
        self.outcomes.append(answered)
        self.streak = max(self.streak, 0) + 1 if answered else min(self.streak, 0) - 1
        if answered:
            self.rtt_s = rtt_s
        if self.streak >= (1 if self.up is None else STEADY):
            self.up = True
        elif self.streak <= -TRIES:
            self.up = False


class Lanes:
    """`snapshot` gives the nodes and networks; `tell` takes this node's new `Reach`."""

    def __init__(self, snapshot: Callable[[], Snapshot], tell: Callable[[Reach], None]) -> None:
        self._snapshot, self._tell = snapshot, tell
        self._lanes: dict[LaneKey, Measured] = {}
        self._changed = asyncio.Event()

    def of(self, node: str, device: str = LINK) -> Measured | None:
        """What is known of a lane to `node`, None if it was never tried."""
        return self._lanes.get((node, device))

    async def run(self, probe: LaneProbe) -> None:
        """Round after round. Never returns."""
        self._recall()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish())
            while True:
                await self._round(probe)

    async def _round(self, probe: LaneProbe) -> None:
        snapshot = self._snapshot()
        wanted = lanes(snapshot)
        self._forget(wanted)
        pause_s = max(APART_S, EVERY_S / max(1, len(wanted)))
        async with asyncio.TaskGroup() as group:
            for key in random.sample(sorted(wanted), len(wanted)):
                group.create_task(self.measure(probe, key, *wanted[key]))
                await asyncio.sleep(pause_s)
        if not wanted:
            await asyncio.sleep(EVERY_S)

    async def measure(self, probe: LaneProbe, key: LaneKey, lane: Lane, address: IPv4Address) -> None:
        """One request; after a lost one more of them at once, as long as the lane is not given up."""
        measured = self._lanes.setdefault(key, Measured())
        before = measured.up
        for _ in range(TRIES):
            try:
                measured.took(await probe.ask_by(lane, address, measured.patience_s))
            except LaneAbsent as absent:
                log.debug("lane_absent", extra={"node": key[0], "error": str(absent)})
                return
            if measured.streak > 0 or measured.up is False:
                break
        if measured.up != before:
            self._changed.set()

    def _recall(self) -> None:
        """Begin with what this node said last, so that a restart of the agent changes no path."""
        snapshot = self._snapshot()
        said = snapshot.reach.get(snapshot.me, Reach(snapshot.me))
        for node in said.linked:
            self._lanes[node, LINK] = Measured(True)
        for device, nodes in said.broken.items():
            self._lanes |= {(node, device): Measured(False) for node in nodes}

    def _forget(self, wanted: Collection[LaneKey]) -> None:
        """Of a node or a device that is gone nothing is known."""
        gone = [key for key in self._lanes if key not in wanted]
        for key in gone:
            del self._lanes[key]
        if gone:
            self._changed.set()

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._tell(reach(self._snapshot().me, self._lanes))
            await asyncio.sleep(TELL_S)


def lanes(snapshot: Snapshot) -> dict[LaneKey, tuple[Lane, IPv4Address]]:
    """All that lead to other nodes, each with the address to ask; also to those that the store takes for dead, for perhaps it is only the
    store that they do not reach. Empty while this node has no tunnel address."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None or me.tunnel is None:
        return {}
    devices, plain = sorted(tunnel_devices(snapshot.networks.values())), linkable(snapshot.nodes)
    found: dict[LaneKey, tuple[Lane, IPv4Address]] = {}
    for name, node in snapshot.nodes.items():
        if name != me.name and node.tunnel is not None:
            if {me.name, name} <= plain.keys():
                found[name, LINK] = Lane(me.tunnel), plain[name]
            found |= {(name, device): (Lane(me.tunnel, device), node.tunnel) for device in devices}
    return found


def reach(node: str, known: Mapping[LaneKey, Measured]) -> Reach:
    """What `node` says of the others."""
    linked = sorted(name for (name, device), lane in known.items() if device == LINK and lane.up)
    broken: dict[str, list[str]] = {}
    for (name, device), lane in sorted(known.items()):
        if device != LINK and lane.up is False:
            broken.setdefault(device, []).append(name)
    return Reach(node, tuple(linked), {device: tuple(names) for device, names in broken.items()})
