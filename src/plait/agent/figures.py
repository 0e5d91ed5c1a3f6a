# SPDX-License-Identifier: Apache-2.0
"""Where the figures of `agent/metrics` come from: every part of the agent that counts something is asked when somebody wants to know."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from plait.agent.health import Health
from plait.agent.kernelwork import KernelWork
from plait.services.figures import Reading, readings

Source = Callable[[], Iterable[Reading]]
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Figures:
    """Not thread-safe: used from the loop only."""

    def __init__(self) -> None:
        self._sources: list[Source] = [process]

    def add(self, source: Source) -> None:
        """One more that is asked from now on; no two may give the same figure."""
        self._sources.append(source)

    def read(self) -> list[Reading]:
        return [reading for source in self._sources for reading in source()]


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
