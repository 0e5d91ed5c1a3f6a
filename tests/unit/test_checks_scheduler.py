# SPDX-License-Identifier: Apache-2.0
"""When checks run: jitter, phase, bounds of lanes, removal. Real time, scaled down."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from plait.checks.scheduler import SLOW, Scheduler, Ticker


@contextlib.asynccontextmanager
async def scheduled(
    work: Callable[[str], Awaitable[None]],
    lane: Callable[[str], str] = lambda _: "all",
    limits: Mapping[str, int] | None = None,
    chance: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Scheduler[str]]:
    made: Scheduler[str] = Scheduler(work, lane, limits or {"all": 100}, asyncio.get_running_loop().time, chance)
    task = asyncio.ensure_future(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_first_runs_spread_over_the_interval_and_then_keep_their_phase() -> None:
    began, runs = time.monotonic(), dict[str, list[float]]()
    chances = random.Random(1)

    async def work(key: str) -> None:
        runs.setdefault(key, []).append(time.monotonic() - began)

    async with scheduled(work, chance=chances.random) as scheduler:
        for number in range(200):
            scheduler.add(f"k{number}", 0.5)
        await asyncio.sleep(1.6)
    firsts = [moments[0] for moments in runs.values()]
    assert len(firsts) == 200 and all(3 <= len(moments) <= 4 for moments in runs.values())
    thirds = Counter(int(moment / 0.17) for moment in firsts if moment < 0.51)
    assert all(thirds[n] >= 30 for n in range(3)), f"not spread: {thirds}"
    assert sum(abs((m[1] - m[0]) - 0.5) < 0.25 for m in runs.values()) >= 190


async def test_an_initial_delay_comes_before_the_first_interval() -> None:
    began, first = time.monotonic(), list[float]()

    async def work(key: str) -> None:
        first.append(time.monotonic() - began)

    async with scheduled(work, chance=lambda: 0.5) as scheduler:
        scheduler.add("k", 0.2, delay=0.4)
        await asyncio.sleep(0.45)
        assert not first
        await asyncio.sleep(0.3)
    assert first and first[0] >= 0.5


async def test_a_run_longer_than_its_interval_is_never_beside_itself() -> None:
    now, most, count = 0, 0, 0

    async def work(key: str) -> None:
        nonlocal now, most, count
        now, count = now + 1, count + 1
        most = max(most, now)
        await asyncio.sleep(0.25)
        now -= 1

    async with scheduled(work) as scheduler:
        scheduler.add("k", 0.1)
        await asyncio.sleep(1.0)
    assert most == 1 and 3 <= count <= 4


async def test_after_a_run_that_took_too_long_the_phase_is_kept() -> None:
    began, starts = time.monotonic(), list[float]()

    async def work(key: str) -> None:
        starts.append(time.monotonic() - began)
        await asyncio.sleep(0.5)

    async with scheduled(work) as scheduler:
        scheduler.add("k", 0.4)
        await asyncio.sleep(2.2)
    assert 2 <= len(starts) <= 3 and all(abs(start - n * 0.8) < 0.15 for n, start in enumerate(starts))


async def test_a_lane_that_is_full_holds_up_neither_the_others_nor_more_than_its_bound() -> None:
    running, most, quick = 0, 0, 0

    async def work(key: str) -> None:
        nonlocal running, most, quick
        if key.startswith("quick"):
            quick += 1
            return
        running += 1
        most = max(most, running)
        await asyncio.sleep(10)

    async with scheduled(work, lambda key: key.partition("-")[0], {"quick": 1, "slow": 3}) as scheduler:
        for number in range(20):
            scheduler.add(f"slow-{number}", 0.2)
        scheduler.add("quick-1", 0.1)
        await asyncio.sleep(1.0)
        waiting, longest = scheduler.overdue()
    assert most == 3 and quick >= 8
    assert waiting == 17 and 0.4 < longest < 1.2


async def test_long_runs_move_over_so_that_those_behind_them_get_their_turn() -> None:
    ran = Counter[str]()

    async def work(key: str) -> None:
        ran[key] += 1
        await asyncio.sleep(30 if key.startswith("hang") else 0)

    async with scheduled(work, limits={"all": 2, f"all{SLOW}": 3}) as scheduler:
        for number in range(4):
            scheduler.add(f"hang{number}", 60)
        scheduler.add("good", 0.2)
        await asyncio.sleep(0.8)
        assert ran["good"] == 0, "two hang in its lane"
        await asyncio.sleep(0.8)
        assert set(ran) == {"hang0", "hang1", "hang2", "hang3"}
        await asyncio.sleep(1.5)
        assert ran["good"] >= 3, "a third has moved; the lane for long ones is full now"
        lanes = scheduler._lanes
        assert (lanes["all"].running, lanes[f"all{SLOW}"].running) == (1, 3)


async def test_what_waited_runs_as_places_become_free() -> None:
    done: list[str] = []

    async def work(key: str) -> None:
        await asyncio.sleep(0.05)
        done.append(key)

    async with scheduled(work, limits={"all": 2}) as scheduler:
        for number in range(8):
            scheduler.add(str(number), 60)
        await asyncio.sleep(0.6)
        assert scheduler.overdue() == (0, 0.0)
    assert done == [str(n) for n in range(8)]


async def test_removal_ends_a_run_under_way_and_frees_its_place() -> None:
    began, cancelled = list[str](), list[str]()

    async def work(key: str) -> None:
        began.append(key)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(key)
            raise

    async with scheduled(work, limits={"all": 1}) as scheduler:
        scheduler.add("a", 0.1)
        await asyncio.sleep(0.1)
        scheduler.add("b", 0.1)
        scheduler.add("c", 0.1)
        await asyncio.sleep(0.1)
        assert began == ["a"] and len(scheduler) == 3
        scheduler.remove("b")
        scheduler.remove("a")
        scheduler.remove("nobody")
        await asyncio.sleep(0.15)
        assert (began, cancelled, len(scheduler)) == (["a", "c"], ["a"], 1)


async def test_a_place_is_free_again_when_a_run_is_cancelled_before_it_began() -> None:
    ran: list[str] = []

    async def work(key: str) -> None:
        ran.append(key)

    async with scheduled(work, limits={"all": 1}) as scheduler:
        scheduler.add("a", 60)
        original = scheduler._begin

        def begin(key: str, due: float, lane: object, task: asyncio.Task[None]) -> None:
            original(key, due, lane, task)  # type: ignore[arg-type]
            if key == "a":
                scheduler.remove("a")

        scheduler._begin = begin  # type: ignore[method-assign,assignment]
        scheduler.add("b", 60)
        await asyncio.sleep(0.2)
    assert ran == ["b"]


async def test_a_ticker_wakes_for_an_earlier_deadline_and_forgets_a_dropped_one() -> None:
    came: list[str] = []
    loop = asyncio.get_running_loop()
    ticker: Ticker[str] = Ticker(came.append, loop.time)
    task = asyncio.ensure_future(ticker.run())
    ticker.put("late", loop.time() + 60)
    ticker.put("dropped", loop.time() + 0.1)
    await asyncio.sleep(0.01)
    ticker.put("soon", loop.time() + 0.15)
    ticker.drop("dropped")
    ticker.put("past", loop.time() - 5)
    await asyncio.sleep(0.3)
    task.cancel()
    assert came == ["past", "soon"]
