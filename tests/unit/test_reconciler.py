# SPDX-License-Identifier: Apache-2.0
"""The loop of passes, and what goes ahead of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import pytest_asyncio

from plait.agent import kernelwork, reconciler
from plait.agent.health import Health
from plait.agent.kernelwork import KernelWork, PassReport
from plait.agent.reconciler import Reconciler
from plait.kernel.fake import FakeKernel
from plait.model.errors import KernelError
from plait.model.objects import KernelObject, NftChain, NftSet, Plan

HOSTS = NftSet("hosts", "ipv4_addr", frozenset({"10.28.0.1"}))
MORE = NftSet("hosts", "ipv4_addr", frozenset({"10.28.0.1", "10.28.0.2"}))
CHAIN = NftChain("c", ("ip saddr @hosts accept",))


class Case:
    """A node whose kernel is to have `wanted`; passes are so far apart that what comes sooner is not theirs."""

    def __init__(self) -> None:
        self.kernel, self.wanted, self.asked = FakeKernel(), HOSTS, 0
        self.error: Exception | None = None
        self.complete = True
        self.work = KernelWork(self.kernel)
        nothing = lambda: None  # noqa: E731
        self.loop = Reconciler(self.kernel, self.work, self._plan, self._prompt, lambda: self.complete, Health(lambda: 0.0), *[nothing] * 3)

    def _plan(self) -> Plan:
        return {one.key: one for one in (self.wanted, CHAIN)}

    def _prompt(self) -> Sequence[KernelObject]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return [self.wanted]

    def wants(self, wanted: NftSet) -> None:
        self.wanted = wanted
        self.loop.hurry()

    @property
    def held(self) -> KernelObject | None:
        return self.kernel.objects.get(HOSTS.key)

    async def settled(self) -> None:
        await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def case(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    monkeypatch.setattr(reconciler, "APART_S", 60.0)
    made = Case()
    running = [asyncio.create_task(one) for one in made.loop.loops()]
    await made.settled()
    assert made.work.passes == 1 and made.held == HOSTS
    yield made
    assert not any(one.done() for one in running)
    for one in running:
        one.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*running)
    made.work.close()


async def test_what_is_hurried_is_in_the_kernel_ahead_of_the_pass(case: Case) -> None:
    case.wants(MORE)
    await case.settled()
    assert case.held == MORE and case.work.passes == 1
    assert (await case.loop.once()).writes == 0, "the pass finds it done"


async def test_a_stream_of_events_costs_a_bounded_share(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "HASTE_APART_S", 60.0)
    case.wants(MORE)
    await case.settled()
    for number in range(100):
        case.wants((HOSTS, MORE)[number % 2])
        await asyncio.sleep(0)
    await case.settled()
    assert case.asked == 1 and case.work.passes == 1


@pytest.mark.parametrize("error", [KernelError("put", "nft set hosts", errno.EINVAL), OSError(errno.ENOBUFS, "no room")])
async def test_what_fails_is_the_passes_to_find_and_ends_nothing(case: Case, error: Exception) -> None:
    case.error = error
    case.wants(MORE)
    await case.settled()
    assert case.asked == 1 and case.held == HOSTS
    case.error = None
    case.wants(MORE)
    await case.settled()
    assert case.asked == 2 and case.held == MORE


async def test_what_is_only_marked_waits_for_the_pass(case: Case) -> None:
    case.wanted = MORE
    case.loop.mark()
    await case.settled()
    assert case.asked == 0 and case.held == HOSTS


class Rested:
    """A loop of passes that has come to rest, each next one `APART_S` later; what each was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconciler, "APART_S", 0.0)
        self.case, self.asked = Case(), list[str]()
        converge = self.case.work.converge

        def noted(plan: Callable[[], Plan], may_delete: bool, beginning: str = "") -> Awaitable[PassReport]:
            self.asked.append(beginning)
            return converge(plan, may_delete, beginning)

        monkeypatch.setattr(self.case.work, "converge", noted)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(one) for one in (self.case.loop.run(), self.case.loop.watch())]
        await self.passed()
        self.asked.clear()
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.case.work.close()

    async def passed(self) -> list[str]:
        """What was asked for since the last time."""
        await asyncio.sleep(4 * reconciler.SETTLE_S + 0.05)
        asked = list(self.asked)
        self.asked.clear()
        return asked


async def test_while_the_kernel_is_silent_what_is_new_comes_before_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    rested = Rested(monkeypatch)
    async with rested.running():
        rested.case.loop.mark()
        assert await rested.passed() == [kernelwork.ADDED], "nothing was to be done, and nothing is to be looked at"
        rested.case.wanted = MORE
        rested.case.loop.mark()
        assert await rested.passed() == [kernelwork.ADDED, ""] and rested.case.held == MORE


async def test_what_somebody_set_without_a_word_is_found_soon_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and sysctls: the kernel says nothing of them."""
    monkeypatch.setattr(reconciler, "LOOK_S", 0.1)
    rested = Rested(monkeypatch)
    async with rested.running():
        del rested.case.kernel.objects[HOSTS.key]
        rested.case.loop.mark()
        assert await rested.passed() == [kernelwork.ADDED, ""] and rested.case.held == HOSTS


async def test_once_the_kernel_has_spoken_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    rested = Rested(monkeypatch)
    async with rested.running():
        rested.case.kernel.trample(HOSTS.key, None)
        assert (await rested.passed())[0] == "" and rested.case.held == HOSTS


async def test_what_a_pass_was_not_to_take_away_goes_as_soon_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that has started knows too little to take anything away; the kernel says nothing of it when it knows enough."""
    rested = Rested(monkeypatch)
    left = NftSet("left", "ipv4_addr", frozenset())
    rested.case.complete = False
    rested.case.kernel.objects[left.key] = left
    async with rested.running():
        assert left.key in rested.case.kernel.objects
        rested.case.complete = True
        rested.case.loop.mark()
        assert (await rested.passed())[0] == "" and left.key not in rested.case.kernel.objects


async def test_what_a_pass_was_not_to_take_away_goes_though_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "LOOK_S", 0.1)
    rested = Rested(monkeypatch)
    left = NftSet("left", "ipv4_addr", frozenset())
    rested.case.complete = False
    rested.case.kernel.objects[left.key] = left
    async with rested.running():
        rested.case.complete = True
        assert "" in await rested.passed() and left.key not in rested.case.kernel.objects


async def test_a_stream_of_changes_does_not_put_off_the_look_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "TIMER_S", 0.2)
    rested = Rested(monkeypatch)
    async with rested.running():
        asked = []
        for _ in range(4):
            rested.case.loop.mark()
            asked += await rested.passed()
        assert "" in asked and kernelwork.ADDED in asked


async def test_a_pass_follows_that_for_an_endpoint_that_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left to the next one does not wait for the timer."""
    monkeypatch.setattr(reconciler, "APART_S", 0.0)
    made = Case()
    running = asyncio.create_task(made.loop.run())
    await made.settled()
    before = made.work.passes
    await made.loop.once("pl-e1")
    await asyncio.sleep(reconciler.SETTLE_S + 0.05)
    assert made.work.passes == before + 2
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    made.work.close()
