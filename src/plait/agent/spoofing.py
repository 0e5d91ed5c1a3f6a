# SPDX-License-Identifier: Apache-2.0
"""Who sends under addresses that are not its own: what the kernel has dropped for that, by link, becomes a condition that names containers.

Data in: the counters of the sets `forgers` (`plan/guard.py`) and `child_forgers` (`plan/wires.py`), of ports of switches and of children's
namespaces, this node's endpoints and what is on Docker's bridge. Data out: the condition `spoofed-packets` for each container that has
forged within the last minute, and a figure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from plait.agent.health import Health
from plait.model.cluster import Snapshot
from plait.model.hostlinks import BridgePort
from plait.plan.desired import is_child, is_port
from plait.plan.guard import FORGERS, bridge_block, bridged
from plait.plan.wires import CHILD_FORGERS
from plait.services.figures import Reading, readings

CODE = "spoofed-packets"
SHOWN_S = 60.0
"""How long it is a condition after the last of them."""
UNGUARDED = (
    "containers may send under addresses that are not theirs: this host's kernel lacks nf_tables of the family netdev, or sets that its "
    "rules add to"
)


UNGUARDED_CHILDREN = (
    "containers on links of the host may send under addresses that are not theirs: this host's kernel has no nf_tables for what leaves a "
    "link (CONFIG_NETFILTER_EGRESS, Linux 5.16)"
)
UNGUARDED_PORTS = (
    "containers on ports of Open vSwitch may send under addresses that are not theirs: this host's kernel takes no XDP program for their "
    "links"
)


class Counters(Protocol):
    """What is asked of the kernel (`kernel.linux.LinuxKernel`), in a thread, for it may block."""

    def counted_links(self, name: str) -> dict[str, int]: ...

    def counted_ports(self, devs: Collection[str]) -> dict[str, int]: ...

    def counted_children(self, guards: Collection[tuple[str, str]]) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Forger:
    """A link, or the MAC of one that is counted at its parent too: what its counter said last, packets since the agent started, when there
    were new ones last (seconds since the epoch, 0 for never)."""

    counter: int
    packets: int = 0
    last: float = 0.0

    def after(self, counter: int, now: float) -> Forger:
        """A counter that says less than before has begun anew."""
        fresh = counter - self.counter if counter >= self.counter else counter
        return Forger(counter, self.packets + fresh, now if fresh else self.last)

    def __add__(self, other: Forger) -> Forger:
        """One that is counted in two places."""
        return Forger(self.counter + other.counter, self.packets + other.packets, max(self.last, other.last))


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a link is of: `name` is network and container; `own` its addresses."""

    name: str
    own: tuple[str, ...]


class Spoofing:
    """`ports`: the links of containers on Docker's bridge, by container. `netns`: namespaces of endpoints whose record has none."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        ports: Callable[[], Mapping[str, BridgePort]],
        netns: Callable[[], Mapping[str, str]],
        counters: Counters,
        health: Health,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._netns = netns
        self._snapshot, self._ports, self._counters, self._health, self._clock = snapshot, ports, counters, health, clock
        self._forgers: dict[str, Forger] | None = None
        self.packets = 0

    async def look(self) -> None:
        """Bring the condition in line with the counters. What the first look finds was counted before this agent started."""
        snapshot = self._snapshot()
        sets = [FORGERS, *([CHILD_FORGERS] if any(map(is_child, snapshot.networks.values())) else [])]
        counted = await asyncio.to_thread(self._count, sets, ports_of(snapshot), children_of(snapshot, self._netns))
        now = self._clock()
        before = self._forgers if self._forgers is not None else {link: Forger(counter) for link, counter in counted.items()}
        found = {link: before.get(link, Forger(0)).after(counter, now) for link, counter in counted.items()}
        self.packets += sum(forger.packets - before.get(link, Forger(0)).packets for link, forger in found.items())
        self._forgers = found
        recent = {link: forger for link, forger in found.items() if forger.last and now - forger.last < SHOWN_S}
        known = owners(self._snapshot(), self._ports()) if recent else {}
        shown: dict[tuple[str, Owner | None], Forger] = {}
        for link, forger in sorted(recent.items()):
            named = who(link, known), known.get(link)
            shown[named] = shown[named] + forger if named in shown else forger
        self._health.replace(CODE, {name: text(forger, owner) for (name, owner), forger in shown.items()})

    def _count(self, sets: Collection[str], ports: Collection[str], children: Collection[tuple[str, str]]) -> dict[str, int]:
        found = {key: packets for name in sets for key, packets in self._counters.counted_links(name).items()}
        found |= self._counters.counted_ports(ports) if ports else {}
        return found | (self._counters.counted_children(children) if children else {})

    def readings(self) -> list[Reading]:
        """For `agent/metrics`."""
        return readings({"plait.spoofed.drops": float(self.packets)})


def ports_of(snapshot: Snapshot) -> list[str]:
    """The links of this node's endpoints that are ports of a switch."""
    switched = {network.name for network in snapshot.networks.values() if is_port(network)}
    return [e.dev for e in snapshot.endpoints.values() if e.network in switched and e.node == snapshot.me] if switched else []


def children_of(snapshot: Snapshot, netns: Callable[[], Mapping[str, str]]) -> list[tuple[str, str]]:
    """The links of this node's endpoints that are children of links of the host, and the namespaces where they lie, as far as known."""
    names = {network.name for network in snapshot.networks.values() if is_child(network)}
    linked = [e for e in snapshot.endpoints.values() if e.network in names and e.node == snapshot.me] if names else []
    found = netns() if linked else {}
    return [(e.dev, place) for e in linked if (place := found.get(e.id) or e.netns)]


def owners(snapshot: Snapshot, ports: Mapping[str, BridgePort]) -> dict[str, Owner]:
    """By link, and by MAC those of whom nothing lies on the host, of this node."""
    found: dict[str, Owner] = {}
    for e in snapshot.endpoints.values():
        if e.node == snapshot.me:
            owner = found[e.dev] = Owner(f"{e.network}/{e.name or e.container or e.dev}", (*map(str, e.present), e.mac))
            if e.network in snapshot.networks and is_child(snapshot.networks[e.network]):
                found[e.mac.lower()] = owner
    if (block := bridge_block(snapshot)) is not None:
        for container, port in bridged(snapshot, block.network, ports):
            found[port.dev] = Owner(f"{block.network}/{container.name}", (str(container.addresses[block.network]), port.mac))
    return found


def who(link: str, known: Mapping[str, Owner]) -> str:
    """What is named: the container, or the link where several share it or nobody knows the container any more."""
    return known[link].name if link in known else link


def text(forger: Forger, owner: Owner | None) -> str:
    """How much was dropped, and what its own addresses are."""
    last = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(forger.last))
    own = f"; its own are {', '.join(owner.own)}" if owner is not None else ""
    return f"{forger.packets} packets under addresses of others were dropped since the agent started, the last at {last}{own}"
