# SPDX-License-Identifier: Apache-2.0
"""When checks run, and how many at once.

A key runs first at a random point of its interval and then at that phase for good, never twice at the same time: what is missed because the
run before took too long is left out. Keys belong to lanes, each with its own bound, so that those that wait for a silent target never
keep the others from running: those that did so last time begin in a lane of their own, and a run that lasts moves over to it as long as
there is room. What is due while its lane is full waits in order, and `overdue` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from plait.checks.wheel import Wheel

K = TypeVar("K", bound=Hashable)
SLOW = "-slow"
"""Ends the name of the lane for long runs of the lane whose name is before it."""
PATIENCE_S = 1.0
"""A run that lasts longer is moved to the lane for long ones."""
_LOOK_S = 0.25


class Ticker(Generic[K]):
    """A wheel that turns by itself: `on_due(key)` is called in the loop once the deadline of `key` has come; it must not block."""

    def __init__(self, on_due: Callable[[K], None], clock: Callable[[], float]) -> None:
        self._on_due, self._clock = on_due, clock
        self._wheel: Wheel[K] = Wheel(clock())
        self._wake = asyncio.Event()
        self._asleep_until = math.inf

    def put(self, key: K, when: float) -> None:
        """Set or move the one deadline of `key`, a moment of the clock."""
        self._wheel.put(key, when)
        if when < self._asleep_until:
            self._wake.set()

    def drop(self, key: K) -> None:
        self._wheel.drop(key)

    def __contains__(self, key: K) -> bool:
        return key in self._wheel

    async def run(self) -> None:
        """Never returns."""
        while True:
            for key in self._wheel.take(self._clock()):
                self._on_due(key)
            upcoming = self._wheel.next()
            self._asleep_until = math.inf if upcoming is None else upcoming
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if upcoming is None else max(0.0, upcoming - self._clock())):
                    await self._wake.wait()


@dataclass(slots=True)
class _Lane(Generic[K]):
    limit: int
    waiting: deque[tuple[K, float]] = field(default_factory=deque)
    running: int = 0


@dataclass(slots=True)
class _Run(Generic[K]):
    """One run under way. `due` and `began` are moments of the clock."""

    key: K
    due: float
    began: float
    lane: _Lane[K]
    slow: _Lane[K] | None
    task: asyncio.Task[None]


class Scheduler(Generic[K]):
    """`work(key)` is one run, which must not raise; `lane(key)` says at each run which of the `limits` it counts against, by name;
    a lane whose name with `SLOW` is one too moves its long runs there."""

    def __init__(
        self,
        work: Callable[[K], Awaitable[None]],
        lane: Callable[[K], str],
        limits: Mapping[str, int],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._work, self._lane, self._clock, self._chance = work, lane, clock, chance
        self._lanes = {name: _Lane[K](limit) for name, limit in limits.items()}
        self._interval: dict[K, float] = {}
        self._due: dict[K, float] = {}
        self._slow = {id(lane): self._lanes.get(name + SLOW) for name, lane in self._lanes.items()}
        self._runs: dict[K, _Run[K]] = {}
        self._ticker: Ticker[K] = Ticker(self._enqueue, clock)
        self._start = asyncio.Event()

    def __len__(self) -> int:
        return len(self._interval)

    def __contains__(self, key: K) -> bool:
        return key in self._interval

    def add(self, key: K, interval: float, delay: float = 0.0) -> None:
        """Run `key` every `interval` seconds, first at a random point of the first interval after `delay`. Replaces what was set before."""
        self.remove(key)
        self._interval[key] = interval
        self._set(key, self._clock() + delay + self._chance() * interval)

    def remove(self, key: K) -> None:
        """Run it no more. A run that is under way is cancelled."""
        if self._interval.pop(key, None) is None:
            return
        self._ticker.drop(key)
        self._due.pop(key, None)
        under_way = self._runs.pop(key, None)
        if under_way is not None:
            under_way.task.cancel()

    def overdue(self) -> tuple[int, float]:
        """How many wait for a place in their lane, and for how many seconds the one that waits longest."""
        now = self._clock()
        waits = [now - due for lane in self._lanes.values() for key, due in lane.waiting if self._due.get(key) == due]
        return len(waits), max(waits, default=0.0)

    async def run(self) -> None:
        """Never returns. All runs end with it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ticker.run())
            group.create_task(self._move_long_runs())
            while True:
                await self._start.wait()
                self._start.clear()
                for lane in self._lanes.values():
                    while lane.waiting and lane.running < lane.limit:
                        key, due = lane.waiting.popleft()
                        if self._due.get(key) == due and key not in self._runs:
                            self._begin(key, due, lane, group.create_task(self._run_one(key)))

    def _set(self, key: K, due: float) -> None:
        self._due[key] = due
        self._ticker.put(key, due)

    def _enqueue(self, key: K) -> None:
        self._lanes[self._lane(key)].waiting.append((key, self._due[key]))
        self._start.set()

    async def _run_one(self, key: K) -> None:
        await self._work(key)

    def _begin(self, key: K, due: float, lane: _Lane[K], task: asyncio.Task[None]) -> None:
        lane.running += 1
        begun = self._runs[key] = _Run(key, due, self._clock(), lane, self._slow[id(lane)], task)
        task.add_done_callback(lambda _: self._end(begun))

    def _end(self, ended: _Run[K]) -> None:
        ended.lane.running -= 1
        if ended.lane.waiting:
            self._start.set()
        if self._runs.get(ended.key) is ended:
            del self._runs[ended.key]
            interval = self._interval[ended.key]
            missed = math.floor((self._clock() - ended.due) / interval)
            self._set(ended.key, ended.due + (missed + 1) * interval)

    async def _move_long_runs(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            until = self._clock() - PATIENCE_S
            for begun in self._runs.values():
                if begun.began < until and begun.slow is not None and begun.slow.running < begun.slow.limit:
                    begun.lane.running -= 1
                    begun.slow.running += 1
                    begun.lane, begun.slow = begun.slow, None
                    self._start.set()
