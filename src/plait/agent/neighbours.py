# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel still has room for neighbours: without, new connections of any container or of the host itself find nobody.

Data in: what the kernel says of its tables, which all namespaces of a machine share. Data out: two conditions, by family.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from plait.agent.health import Health
from plait.kernel.linux.neightables import NeighTable

FULL, SCARCE = "neighbours-full", "neighbours-scarce"
EVERY_S = 5.0
SHARE = 0.9
"""Of the limit, from which on the condition holds. The kernel begins to throw out what is older than five seconds at half of it."""
LASTS_S = 60.0
"""So long the table counts as full after it last refused an entry: one that is full refuses and makes room all the time."""


class Neighbours:
    def __init__(self, health: Health, tables: Callable[[], Iterable[NeighTable]], clock: Callable[[], float]) -> None:
        self._health, self._tables, self._clock = health, tables, clock
        self._refused: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def judge(self, tables: Iterable[NeighTable]) -> None:
        """Raise and clear the conditions by what the kernel says now."""
        full: dict[str, str] = {}
        scarce: dict[str, str] = {}
        for table in tables:
            refused = self._newly_refused(table)
            held = f"{min(table.entries, table.limit)} of {table.limit} neighbours of {table.family}"
            if refused:
                full[table.family] = f"the machine's namespaces together hold {held}; {refused} were turned away lately"
            elif table.limit and table.entries >= SHARE * table.limit:
                scarce[table.family] = f"the machine's namespaces together hold {held}"
        self._health.replace(FULL, full)
        self._health.replace(SCARCE, scarce)

    def _newly_refused(self, table: NeighTable) -> int:
        """How many entries were refused since the condition began, 0 while it does not hold. What was before the start does not count."""
        family, now = table.family, self._clock()
        grown = table.refused - self._refused.get(family, table.refused)
        self._refused[family] = table.refused
        if grown > 0:
            self._until[family] = now + LASTS_S
        if now >= self._until.get(family, now):
            self._since.pop(family, None)
            return 0
        self._since[family] = self._since.get(family, 0) + max(0, grown)
        return self._since[family]

    async def run(self) -> None:
        """Never returns."""
        while True:
            with contextlib.suppress(OSError):  # as at the next look
                self.judge(await asyncio.to_thread(lambda: list(self._tables())))
            await asyncio.sleep(EVERY_S)
