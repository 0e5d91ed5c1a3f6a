# SPDX-License-Identifier: Apache-2.0
"""The agent's one door to the kernel: every pass and every attach goes through here, one at a time, in one thread.

A pass lists the kernel, takes its snapshot and applies while it holds the door, and an endpoint is in the view before its objects
are made; so a pass can never take away what an attach has just made, and both may run at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from plait.kernel.api import Kernel, Op, Result
from plait.model.errors import KernelError
from plait.model.objects import KernelObject, Key, Plan
from plait.reconcile import diff, order

log = logging.getLogger("plait.pass")


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did: number of operations, failures by key, milliseconds."""

    writes: int
    failed: dict[Key, KernelError] = field(default_factory=dict)
    took_ms: float = 0.0


class KernelWork:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._door = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "kernel")
        self.passes = 0

    async def converge(self, plan: Callable[[], Plan], may_delete: bool) -> PassReport:
        """One full pass: list, plan, diff, apply. `plan` is called in the loop after the listing."""
        async with self._door:
            started = time.monotonic()
            loop = asyncio.get_running_loop()
            desired = plan()
            owned = await loop.run_in_executor(self._thread, self._kernel.owned, _probes(desired))
            desired = plan()
            ops = order(diff(desired, owned, may_delete))
            result = await loop.run_in_executor(self._thread, self._kernel.apply, ops) if ops else Result()
            self.passes += 1
            took = (time.monotonic() - started) * 1000
        if ops:
            log.info(
                "pass_applied",
                extra={"pass_id": self.passes, "writes": len(ops), "failed": len(result.failed), "took_ms": round(took, 1)},
            )
        for key, error in result.failed.items():
            log.warning("kernel_refused", extra={"key": " ".join(key), "error": str(error)})
        return PassReport(len(ops), dict(result.failed), took)

    async def difference(self, plan: Callable[[], Plan]) -> list[Op]:
        """What a pass would do now, in order; nothing is done."""
        async with self._door:
            desired = plan()
            owned = await asyncio.get_running_loop().run_in_executor(self._thread, self._kernel.owned, _probes(desired))
            return order(diff(plan(), owned, True))

    async def put(self, objects: Sequence[KernelObject], old: Sequence[KernelObject | None] = ()) -> None:
        """Make just these objects true, now; those equal to their `old` are left alone. Raises the first KernelError."""
        before = [*old, *([None] * (len(objects) - len(old)))]
        await self._apply([Op("put", new, previous) for new, previous in zip(objects, before, strict=True) if new != previous])

    async def delete(self, objects: Sequence[KernelObject]) -> None:
        """Remove these objects; absent ones are fine. Raises the first KernelError."""
        await self._apply([Op("del", None, obj) for obj in objects])

    async def _apply(self, ops: Sequence[Op]) -> None:
        async with self._door:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._kernel.apply, ops)
        for error in result.failed.values():
            raise error

    def close(self) -> None:
        self._thread.shutdown()
        self._kernel.close()


def _probes(plan: Plan) -> Iterable[Key]:
    """Keys whose objects carry no mark of their own, so that the kernel must be asked for them by name."""
    return [key for key in plan if key[0] in ("sysctl", "hook")]
