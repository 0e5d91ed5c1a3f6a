# SPDX-License-Identifier: Apache-2.0
"""What this host uses addresses for outside plait, published, and compared with the pools of the cluster as either changes.

Data in: the kernel's routes and addresses, the engine's networks. Data out: this node's `HostRanges`, the condition `pool-overlaps`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network

from plait.agent.health import Health
from plait.agent.view import View
from plait.ipam import clashes, own_ranges
from plait.model.cluster import HostRange, HostRanges
from plait.model.errors import PlaitError

log = logging.getLogger("plait.addresses")
EVERY_S, APART_S = 30.0, 0.5
"""Between two looks at most, and at least."""
CODE = "pool-overlaps"


class HostRangesWatch:
    """`of_kernel` may block; `of_engines()`: networks of engines as last heard; `bridge()`: the block of Docker's default bridge, whose
    addresses are the cluster's."""

    def __init__(
        self,
        view: View,
        health: Health,
        of_kernel: Callable[[], Iterable[HostRange]],
        of_engines: Callable[[], Iterable[HostRange]],
        bridge: Callable[[], IPv4Network | None],
    ) -> None:
        self._view, self._health, self._of_kernel = view, health, of_kernel
        self._of_engines, self._bridge = of_engines, bridge
        self._dirty = asyncio.Event()
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & {"networks", "hostranges", "blocks"}:
            self.mark()

    def mark(self) -> None:
        """A route, an address or an engine's network is another."""
        self._dirty.set()

    async def look(self) -> None:
        """Know what this host uses now."""
        try:
            found = [*await asyncio.to_thread(self._of_kernel), *self._of_engines()]
        except (OSError, PlaitError) as error:
            log.warning("host_ranges_failed", extra={"error": str(error)})
            return
        self._view.put(HostRanges(self._view.me, own_ranges(found, self._bridge())))

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._dirty.clear()
            await self.look()
            self._health.replace(CODE, clashes(self._view.snapshot))
            await asyncio.sleep(APART_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._dirty.wait()
