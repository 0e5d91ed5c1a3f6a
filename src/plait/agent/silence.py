# SPDX-License-Identifier: Apache-2.0
"""Which lost nodes are silent as hosts, not for want of an agent alone: what connections to their containers by virtual addresses end by.

Data in: the nodes, and which of them give a sign of life; echoes. Data out: the names of hosts that do not answer any more. A node is lost
when its agent is, though its kernel may go on serving what containers have: such connections must live on. So a lost node is asked for an
echo, which its kernel answers, and only one that has answered before and does not now is silent. One that never answered (a firewall, an
address behind NAT) says nothing by it; so each is asked while it lives, until it has answered once. Lost ones are while there are services.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping

from plait.agent.echo import SHORTEST, Probe
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot

log = logging.getLogger("plait.silence")
EVERY_S, PATIENCE_S = 0.5, 0.5
"""Between two looks, and how long an answer is waited for."""
TRIES = 3
"""So many requests in a row go unanswered before a lost node is silent."""
AT_ONCE, NEW = 32, 4
"""So many nodes are asked at the same time, and so many living ones in one look whether they answer at all."""


class Silence:
    """`changed` is called when `silent` has become another set: names of lost nodes whose hosts do not answer."""

    def __init__(self, snapshot: Callable[[], Snapshot], changed: Callable[[], None]) -> None:
        self._snapshot, self._changed = snapshot, changed
        self._answered: dict[str, IPAddress] = {}
        self._missed: Counter[str] = Counter()
        self._round: list[str] = []
        self.silent: frozenset[str] = frozenset()

    async def run(self, probe: Probe) -> None:
        """Never returns."""
        while True:
            await self.look(probe)
            await asyncio.sleep(EVERY_S)

    async def look(self, probe: Probe) -> None:
        """Ask the lost nodes, and a few living ones that have not answered yet."""
        snapshot = self._snapshot()
        others = {name: node.address for name, node in snapshot.nodes.items() if name != snapshot.me}
        self._answered = {name: address for name, address in self._answered.items() if others.get(name) == address}
        missing = self._answered.keys() - snapshot.alive if snapshot.services else frozenset()
        lost = {name: self._answered[name] for name in sorted(missing)}
        self._missed = Counter({name: count for name, count in self._missed.items() if name in lost})
        for name, answers in await _ask(probe, lost | self._unknown(others, snapshot.alive)):
            if answers:
                self._answered[name] = others[name]
                del self._missed[name]
            else:
                self._missed[name] += name in lost
        self._say(frozenset(name for name in lost if self._missed[name] >= TRIES))

    def _unknown(self, others: Mapping[str, IPAddress], alive: frozenset[str]) -> dict[str, IPAddress]:
        """The next few of those of whom nobody knows whether they answer, each once in a round."""
        unknown = {name: address for name, address in others.items() if name in alive and name not in self._answered}
        self._round = [name for name in self._round if name in unknown] or sorted(unknown)
        now, self._round = self._round[:NEW], self._round[NEW:]
        return {name: unknown[name] for name in now}

    def _say(self, silent: frozenset[str]) -> None:
        if silent == self.silent:
            return
        for name in sorted(silent - self.silent):
            log.info("host_silent", extra={"node": name})
        self.silent = silent
        self._changed()


async def _ask(probe: Probe, places: Mapping[str, IPAddress]) -> list[tuple[str, bool]]:
    """Whether each answers."""
    found: list[tuple[str, bool]] = []
    names = iter(places)
    while part := list(itertools.islice(names, AT_ONCE)):
        echoes = await asyncio.gather(*(probe.ask(places[name], SHORTEST, PATIENCE_S) for name in part))
        found += [(name, echoed.rtt_s is not None) for name, echoed in zip(part, echoes, strict=True)]
    return found
