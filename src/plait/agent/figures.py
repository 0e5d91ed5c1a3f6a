# SPDX-License-Identifier: Apache-2.0
"""Where the figures of `agent/metrics` come from: every part of the agent that counts something is asked when somebody wants to know."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path

from plait.agent.health import Health
from plait.agent.kernelwork import KernelWork
from plait.services.figures import Interval, Key, Reading, Spread, Summary, interval, readings

Source = Callable[[], Iterable[Reading]]
INTERVAL_S = 10.0
"""Consul's: dashboards divide by it."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Figures:
    """Not thread-safe: used from the loop only. Intervals of `INTERVAL_S` seconds follow one another while `run` does."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._sources: list[Source] = [process]
        self._clock = clock
        self._start = clock()
        self._counted: dict[Key, float] = {}
        self._finished: Interval | None = None
        self._ended = asyncio.Condition()

    def add(self, *sources: Source) -> None:
        """More that are asked from now on; no two may give the same figure."""
        self._sources += sources

    def read(self) -> list[Reading]:
        """All, since the agent started."""
        return [reading for source in self._sources for reading in source()]

    def latest(self) -> Interval:
        """The interval that ended last; what there is of the first one until that has ended."""
        if self._finished is not None:
            return self._finished
        return interval(self._start, max(1.0, self._clock() - self._start), self._counted, self.read())

    async def intervals(self) -> AsyncGenerator[Interval]:
        """Each interval as it ends, from now on; one that is slow to take them misses some."""
        while True:
            before = self._finished
            async with self._ended:
                await self._ended.wait_for(lambda: self._finished is not before)  # noqa: B023 - called before the next turn
            assert self._finished is not None
            yield self._finished

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.finish()

    async def finish(self) -> None:
        """End the interval."""
        found = self.read()
        self._finished = interval(self._start, INTERVAL_S, self._counted, found)
        self._start = self._clock()
        self._counted = {}
        for reading in found:
            if isinstance(reading.value, Summary):
                reading.value.recent = Spread()
            else:
                self._counted[reading.key] = reading.value
        async with self._ended:
            self._ended.notify_all()


def process() -> list[Reading]:
    """Of this process: memory, tasks, CPU time. Source: proc(5), statm; getrusage(2)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return readings(
        {
            "consul.runtime.alloc_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * float(_PAGE),
            "consul.runtime.sys_bytes": used.ru_maxrss * 1024.0,
            "consul.runtime.num_goroutines": float(len(asyncio.all_tasks())),
            "plait.process.cpu_seconds": used.ru_utime + used.ru_stime,
        }
    )


def of_kernel(work: KernelWork) -> list[Reading]:
    return readings({"plait.kernel.pass_seconds": work.took_s, "plait.kernel.writes": float(work.writes)})


def of_health(health: Health) -> list[Reading]:
    """Conditions by severity, 0 for one that none has."""
    found = Counter(active.condition.severity for active in health.active())
    return [Reading("plait.conditions", float(found[severity]), (("severity", severity),)) for severity in ("error", "warning")]
