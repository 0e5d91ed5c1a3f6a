# SPDX-License-Identifier: Apache-2.0
"""Which of the other nodes this one reaches, and how: probed, and made known as this node's `Reach`.

Data in: the other nodes, the tunnel devices of the networks. Data out: a new `Reach` whenever that changed, and what was measured of each
lane. A lane is the own link (an echo request from the tunnel address to the other's underlay address that no router passes on) or a
tunnel device (one between the tunnel addresses, through that device whatever the routes say). The answer comes back by whatever path the
other node has chosen, so that each direction is judged by itself as long as there is any way back.

Whether plain IPv6 passes on the link is a lane of its own, where that matters: between addresses to which no way but that leads, so that it
is judged both ways at once. Over IPv6 the others' underlay address is no foreign one's to ask by IPv4; their tunnel address is, by ARP.

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

from plait.agent.echo import Lane, LaneAbsent, LaneProbe
from plait.model.addr import IPAddress
from plait.model.cluster import Node, Reach, Snapshot
from plait.plan import inhabited, next_hop, next_hop6, plain6, tunnel_devices

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
LINK, LINK6 = "", "ipv6"
"""The lanes without a tunnel, in the place of a device: of IPv4, of IPv6."""
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
    """`snapshot` gives the nodes and networks; `tell` takes this node's new `Reach`; `link`: see `lanes`."""

    def __init__(self, snapshot: Callable[[], Snapshot], tell: Callable[[Reach], None], link: Callable[[], str] = str) -> None:
        self._snapshot, self._tell, self._link = snapshot, tell, link
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
        wanted = lanes(snapshot, self._link())
        self._forget(wanted)
        pause_s = max(APART_S, EVERY_S / max(1, len(wanted)))
        async with asyncio.TaskGroup() as group:
            for key in random.sample(sorted(wanted), len(wanted)):
                group.create_task(self.measure(probe, key, *wanted[key]))
                await asyncio.sleep(pause_s)
        if not wanted:
            await asyncio.sleep(EVERY_S)

    async def measure(self, probe: LaneProbe, key: LaneKey, lane: Lane, address: IPAddress) -> None:
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
        for lane, nodes in ((LINK, said.linked), (LINK6, said.linked6)):
            self._lanes |= {(node, lane): Measured(True) for node in nodes}
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


def lanes(snapshot: Snapshot, link: str = "") -> dict[LaneKey, tuple[Lane, IPAddress]]:
    """All that lead to other nodes, each with the address to ask; also to those that the store takes for dead, for perhaps it is only the
    store that they do not reach. Empty while this node has no tunnel address. `link` is that of the underlay, "" where plain IPv4 cannot
    be sent to a next hop of IPv6."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None or me.tunnel is None:
        return {}
    asked = [snapshot.networks[name] for name in inhabited(snapshot)]
    devices, six = sorted(tunnel_devices(asked)), plain6(me, snapshot.networks.values())
    found: dict[LaneKey, tuple[Lane, IPAddress]] = {}
    for name, node in snapshot.nodes.items():
        if name == me.name or node.tunnel is None:
            continue
        plain = _plain(me, node, link)
        found |= {(name, LINK): plain} if plain is not None else {}
        if six and next_hop6(me, node) is not None:
            found[name, LINK6] = Lane(me.probe6), node.probe6
        found |= {(name, device): (Lane(me.tunnel, device), node.tunnel) for device in devices}
    return found


def _plain(me: Node, node: Node, link: str) -> tuple[Lane, IPAddress] | None:
    """How to ask whether plain IPv4 passes on the link; None where it could not be used."""
    assert me.tunnel is not None and node.tunnel is not None
    hop = next_hop(me, node)
    if hop is None or hop.version == 4:
        return None if hop is None else (Lane(me.tunnel), hop)
    return (Lane(me.tunnel, link), node.tunnel) if link else None


def reach(node: str, known: Mapping[LaneKey, Measured]) -> Reach:
    """What `node` says of the others."""
    linked, linked6 = (sorted(name for (name, device), lane in known.items() if device == link and lane.up) for link in (LINK, LINK6))
    broken: dict[str, list[str]] = {}
    for (name, device), lane in sorted(known.items()):
        if device not in (LINK, LINK6) and lane.up is False:
            broken.setdefault(device, []).append(name)
    return Reach(node, tuple(linked), {device: tuple(names) for device, names in broken.items()}, tuple(linked6))
