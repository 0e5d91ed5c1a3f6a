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
"""Of the limit, from which on a table that throws out old entries counts as scarce. The count alone says nothing: it has entries of other
namespaces too that are exempt from the limit."""
LASTS_S = 60.0
"""So long a table counts as full after it last refused an entry, or as squeezed after it last threw some out: it does so all the time."""


class Neighbours:
    def __init__(self, health: Health, tables: Callable[[], Iterable[NeighTable]], clock: Callable[[], float]) -> None:
        self._health, self._tables, self._clock = health, tables, clock
        self._grown: dict[tuple[str, str], _Grown] = {}

    def judge(self, tables: Iterable[NeighTable]) -> None:
        """Raise and clear the conditions by what the kernel says now."""
        full: dict[str, str] = {}
        scarce: dict[str, str] = {}
        for table in tables:
            refused, squeezed = self._lately(table.family, "refused", table.refused), self._lately(table.family, "", table.squeezed)
            held = f"{min(table.entries, table.limit)} of {table.limit} neighbours of {table.family}"
            if refused:
                full[table.family] = f"the machine's namespaces together hold {held}; {refused} were turned away lately"
            elif squeezed and table.entries >= SHARE * table.limit:
                scarce[table.family] = f"the machine's namespaces together hold {held}"
        self._health.replace(FULL, full)
        self._health.replace(SCARCE, scarce)

    def _lately(self, family: str, what: str, count: int) -> int:
        """By how much a count has grown since it began to, 0 if it has not for a while. What was before the start does not matter."""
        known = self._grown.setdefault((family, what), _Grown(count))
        return known.seen(count, self._clock())

    async def run(self) -> None:
        """Never returns."""
        while True:
            with contextlib.suppress(OSError):  # as at the next look
                self.judge(await asyncio.to_thread(lambda: list(self._tables())))
            await asyncio.sleep(EVERY_S)


class _Grown:
    """How much a count of the kernel's has grown, until it has not for `LASTS_S`."""

    def __init__(self, count: int) -> None:
        self._count, self._by, self._until = count, 0, 0.0

    def seen(self, count: int, now: float) -> int:
        if now >= self._until:
            self._by = 0
        if count > self._count:
            self._by, self._until = self._by + count - self._count, now + LASTS_S
        self._count = count
        return self._by
