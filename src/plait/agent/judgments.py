# SPDX-License-Identifier: Apache-2.0
"""How often which rule of a policy decided on this host, and what was dropped, or would be by policies to audit.

Data in: what the kernel has counted of connections that policies judge, looked at every few seconds (`kernel/linux/judged.py`), and the
policies of that moment. Data out: counts by rule and the latest drops, kept in memory while the agent runs, whatever becomes of the tables.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from plait.agent.view import View
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.model.errors import NotSupported, PlaitError
from plait.model.policy import Direction, Policy
from plait.model.policyreport import DropRow, RuleCount
from plait.policy.evaluate import Packet, world_of
from plait.policy.tally import Ident, Ruling, rulings
from plait.policy.workloads import Workload

log = logging.getLogger("plait.policies")
COUNTING = "counting"
"""Capability of a kernel that can count by what packets hold."""
LOOK_S = 5.0
"""An element of the kernel's lives a minute longer than its last packet."""
_AT_ONCE = 200
"""So many kinds of connection are judged in one look, the others in those after it: with 10,000 rules one takes some 10 ms."""
MOST_DROPS = 1000
"""So many kinds of drop are kept, the latest."""
_Rule = tuple[Ident, Direction, str]
_Drop = tuple[Packet, Ruling]


@dataclass(slots=True)
class _Count:
    """Connections, and the seconds since the epoch of the first and last look that found some."""

    first: float
    last: float
    allowed: int = 0
    denied: int = 0

    def add(self, allowed: bool, number: int, now: float) -> None:
        self.last = now
        if allowed:
            self.allowed += number
        else:
            self.denied += number


class CountingKernel(Protocol):
    def capabilities(self) -> frozenset[str]:
        """`COUNTING` among them if it counts at all."""
        ...

    def judged(self) -> Mapping[Packet, int]:
        """Packets that began connections, by kind; one that had none for a minute is forgotten."""
        ...


class Judgments:
    """Not thread-safe."""

    def __init__(self, view: View, kernel: CountingKernel, clock: Callable[[], float]) -> None:
        self._view, self._kernel, self._clock = view, kernel, clock
        self._door = asyncio.Lock()
        self._seen: dict[Packet, int] = {}
        self._rules: dict[_Rule, _Count] = {}
        self._drops: dict[_Drop, _Count] = {}

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Count what the kernel has counted since the last look. What it cannot be asked for is asked for at the next."""
        snapshot = self._view.snapshot
        if not snapshot.policies or COUNTING not in self._kernel.capabilities():
            self._seen, self._rules, self._drops = {}, {}, {}
            return
        self._forget(snapshot.policies)
        async with self._door:
            try:
                counted = await asyncio.to_thread(self._kernel.judged)
            except (OSError, PlaitError) as error:
                log.warning("policy_counts_unread", extra={"error": str(error)})
                return
            self._seen = {packet: seen for packet, seen in self._seen.items() if packet in counted}
            fresh = dict(list(_grown(counted, self._seen))[:_AT_ONCE])
            if not fresh:
                return
            found = await asyncio.to_thread(_judged, snapshot, fresh)
        for packet, number in fresh.items():
            self._seen[packet] = counted[packet]
            for ruling in found[packet]:
                self._count(packet, ruling, number)

    def _forget(self, policies: Collection[Ident]) -> None:
        """What is of none of these."""
        self._rules = {of: count for of, count in self._rules.items() if of[0] in policies}
        self._drops = {of: count for of, count in self._drops.items() if any(policy in policies for policy in of[1].policies)}

    def _count(self, packet: Packet, ruling: Ruling, number: int) -> None:
        now = self._clock()
        for policy in ruling.policies:
            of = (policy, ruling.direction, ruling.where)
            self._rules.setdefault(of, _Count(now, now)).add(ruling.allowed, number, now)
        if not ruling.allowed:
            count = self._drops.pop((packet, ruling), None) or _Count(now, now)
            count.add(False, number, now)
            self._drops[packet, ruling] = count
            while len(self._drops) > MOST_DROPS:
                del self._drops[next(iter(self._drops))]

    # --- what is told

    def totals(self, policy: Policy) -> tuple[int, int]:
        """Connections that a policy let in and that it dropped, or would have."""
        found = [count for (ident, _, _), count in self._rules.items() if ident == policy.ident]
        return sum(count.allowed for count in found), sum(count.denied for count in found)

    def rules(self, policy: Policy) -> list[RuleCount]:
        """Each rule of a policy, and where it isolates, in its order."""
        places: list[tuple[Direction, str]] = []
        for way in _ways(policy):
            places += [(way, rule.where) for rule in policy.rules(way) or ()]
            places += [(way, "")] if policy.tier == "NetworkPolicy" else []
        return [self._rule(policy, way, where) for way, where in places]

    def _rule(self, policy: Policy, way: Direction, where: str) -> RuleCount:
        count = self._rules.get((policy.ident, way, where), _Count(0, 0))
        return RuleCount(direction=way, rule=where, allowed=count.allowed, denied=count.denied, last=count.last)

    async def drops(self) -> list[DropRow]:
        """What was dropped, or would be, the latest first. NotSupported where the kernel cannot count."""
        if COUNTING not in self._kernel.capabilities():
            raise NotSupported("this kernel counts nothing of what policies judge: it lacks sets that packets write (nft_dynset)")
        await self.look()
        known = world_of(self._view.snapshot).known
        return [
            DropRow(
                direction=ruling.direction,
                source=_called(packet.source, known),
                destination=_called(packet.destination, known),
                protocol=packet.protocol,
                port=packet.port,
                policies=_names(ruling.policies),
                rule=ruling.where,
                audit=ruling.audit,
                count=count.denied,
                first=count.first,
                last=count.last,
            )
            for (packet, ruling), count in reversed(self._drops.items())
        ]


def _judged(snapshot: Snapshot, packets: Iterable[Packet]) -> dict[Packet, list[Ruling]]:
    world = world_of(snapshot)
    return {packet: rulings(world, snapshot.me, packet) for packet in packets}


def _grown(counted: Mapping[Packet, int], seen: Mapping[Packet, int]) -> Iterator[tuple[Packet, int]]:
    """By how much, of what has more than was seen; one that has less began anew meanwhile."""
    for packet, count in counted.items():
        before = seen.get(packet, 0)
        if count != before:
            yield packet, count - before if count > before else count


def _ways(policy: Policy) -> Iterator[Direction]:
    if policy.ingress is not None:
        yield "ingress"
    if policy.egress is not None:
        yield "egress"


def _called(address: IPAddress, known: Mapping[IPAddress, Workload]) -> str:
    return f"{known[address].name} ({address})" if address in known else str(address)


def _names(policies: Sequence[Ident]) -> list[str]:
    return ["/".join(policy) for policy in policies]
