# SPDX-License-Identifier: Apache-2.0
"""The loop that keeps the kernel what the snapshot says: triggers mark dirty, a pass makes it true.

Triggers are changes of the view, kernel events (somebody flushed our table, removed our link) and a timer. They only mark; bursts
collapse into one pass. Latency from an event to its pass is at most `SETTLE_S` + `APART_S`; elements may be ahead of it (`hasten`). As
long as the kernel is silent, what the view says anew is in it before it is listed (`ADDED`): a pass that costs what it is about, and the
whole one follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence

from plait.agent.health import Health
from plait.agent.kernelwork import ADDED, KernelWork, PassReport
from plait.kernel.api import Kernel
from plait.model.errors import KernelError
from plait.model.objects import KernelObject, Plan

log = logging.getLogger("plait.reconciler")
SETTLE_S = 0.03
"""A burst of events is given this long to end before a pass."""
APART_S = 0.2
"""Least time between two passes, so that a stream of events costs a bounded share of a CPU."""
TIMER_S = 60.0
LOOK_S = 3.0
"""So long after a pass for what is new a listing is due at the latest: of keys, sysctls and queues that somebody sets the kernel says
nothing. So long, too, after one that was not to delete."""
HASTE_APART_S = 0.02
"""Least time between two changes of elements ahead of a pass."""


class Reconciler:
    def __init__(
        self,
        kernel: Kernel,
        work: KernelWork,
        plan: Callable[[], Plan],
        prompt: Callable[[], Sequence[KernelObject]],
        may_delete: Callable[[], bool],
        health: Health,
        on_link: Callable[[], None],
        on_nft: Callable[[], None],
        on_route: Callable[[], None],
    ) -> None:
        self._kernel, self._work, self._plan, self._prompt = kernel, work, plan, prompt
        self._may_delete, self._health, self._on_link, self._on_nft = may_delete, health, on_link, on_nft
        self._on_route = on_route
        self._dirty, self._hurried = asyncio.Event(), asyncio.Event()
        self._first = asyncio.Event()
        self._moved = False
        """Whether links or addresses changed since they were last looked at: every attach changes some, so once a pass is enough."""
        self._heard, self._due = True, 0.0
        """Whether the kernel has said anything since it was last listed; when it is listed whatever it says (`time.monotonic`)."""

    def mark(self) -> None:
        self._dirty.set()

    def hurry(self) -> None:
        """Mark; what services and policies mean now is in the kernel at once where that takes elements alone, ahead of the pass."""
        self._hurried.set()
        self.mark()

    @property
    def passed(self) -> bool:
        """Whether a first pass has been made."""
        return self._first.is_set()

    def loops(self) -> tuple[Coroutine[None, None, None], ...]:
        """All that it does by itself."""
        return self.watch(), self.run(), self.hasten()

    async def run(self) -> None:
        """Pass after pass. Never returns; a programming error ends it (and the agent)."""
        while True:
            self._dirty.clear()
            if self._moved:
                self._moved = False
                self._on_link()
            await self.once("" if self._heard or time.monotonic() > self._due else ADDED)
            self._first.set()
            await asyncio.sleep(APART_S)
            try:
                async with asyncio.timeout(max(0.0, self._due - time.monotonic())):
                    await self._dirty.wait()
                await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                self._heard = True

    async def hasten(self) -> None:
        """Bring elements in line with what is hurried. Never returns. What fails here is the pass's to find and to tell."""
        while True:
            await self._hurried.wait()
            self._hurried.clear()
            with contextlib.suppress(OSError, KernelError):
                await self._work.hasten(self._prompt)
            await asyncio.sleep(HASTE_APART_S)

    async def once(self, beginning: str = "") -> PassReport:
        """One pass; what failed is a condition, and in the report, under ("pass",) if nothing could be done at all. `beginning`: see
        `KernelWork.converge`."""
        may_delete = self._may_delete()
        if not beginning:  # what it must leave lying, the next one has to see
            rest_s = TIMER_S * random.uniform(0.9, 1.1) if may_delete else LOOK_S
            self._heard, self._due = not may_delete, time.monotonic() + rest_s
        try:
            report = await self._work.converge(self._plan, may_delete, beginning)
        except (OSError, KernelError) as error:
            self._health.set("kernel-refused", "pass", f"the kernel could not be read: {error}")
            self._heard = True
            self._dirty.set()
            refused = error if isinstance(error, KernelError) else KernelError("list", "the kernel", error.errno or errno.EIO, str(error))
            return PassReport(0, {("pass",): refused})
        if beginning:
            self._due = min(self._due, time.monotonic() + LOOK_S)
        if beginning and (beginning != ADDED or report.writes):
            self._heard = True
            self._dirty.set()
        self._health.clear("kernel-refused", "pass")
        self._health.replace("kernel-refused", {" ".join(key): str(error) for key, error in report.failed.items()})
        return report

    async def watch(self) -> None:
        """Turn kernel events into marks. Never returns."""
        async for word in self._kernel.watch():
            log.debug("kernel_event", extra={"kind": word, "at": round(time.monotonic(), 3)})
            self._heard = True
            if word in ("link", "addr", "overrun"):
                self._moved = True
            if word in ("link", "addr", "route", "overrun"):
                self._on_route()
            if word in ("nft", "overrun"):
                self._on_nft()
            self._dirty.set()
