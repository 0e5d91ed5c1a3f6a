# SPDX-License-Identifier: Apache-2.0
"""What the asyncio client hands out: iterators over changes, registrations, locks, endpoints.

Data in: method calls. Data out: results; background work runs in tasks that end with what started them, at the latest with the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from plait.client import discovery
from plait.client.balance import Balancer
from plait.client.discovery import Health, Service
from plait.client.errors import ClientError, LockLost, NoInstances, NotAcquired
from plait.client.facade import Kept, LockState, Operation
from plait.client.lock import Hold
from plait.client.settings import Settings
from plait.client.steps import Steps
from plait.client.types import Instance
from plait.client.watch import Query, Watch

P = ParamSpec("P")
T = TypeVar("T")


class Closes(Protocol):
    """What ends with the client."""

    async def aclose(self) -> None: ...


class Runner(Protocol):
    """What the parts need of the client."""

    settings: Settings
    wait_s: float

    async def run(self, steps: Steps[T]) -> T: ...

    def adopt(self, part: Closes) -> None: ...


class method(Operation[P, Steps[T]]):  # noqa: N801 (used like a decorator)
    """An operation as a coroutine method of whatever can run it: same arguments, its result."""

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: Runner, kind: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, owner: Runner | None, kind: type) -> Self | Callable[P, Coroutine[Any, Any, T]]:
        if owner is None:
            return self

        async def bound(*args: P.args, **kwargs: P.kwargs) -> T:
            return await owner.run(self._core(*args, **kwargs))

        bound.__doc__ = self.__doc__
        return bound


class watching(Operation[P, Query[T]]):  # noqa: N801 (used like a decorator)
    """A query as a method that returns an async iterator over its changes."""

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: Runner, kind: type) -> Callable[P, Changes[T]]: ...
    def __get__(self, owner: Runner | None, kind: type) -> Self | Callable[P, Changes[T]]:
        if owner is None:
            return self

        def bound(*args: P.args, **kwargs: P.kwargs) -> Changes[T]:
            return Changes(owner, Watch(self._core(*args, **kwargs), owner.wait_s))

        bound.__doc__ = self.__doc__
        return bound


class Worker:
    """A task that runs until it returns or is stopped. Whoever makes one stops it."""

    def __init__(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(work, name=f"plait.client {name}")

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        if self._task is asyncio.current_task():
            return
        self._task.cancel()
        await asyncio.wait([self._task])


class Changes(Generic[T]):
    """An async iterator over the values of a query: the present one first, then each that differs. Waits through the agent's absences.

    `trouble` is why the last query failed, None while all is well. For one task; cancelling it in the middle loses no change.
    """

    def __init__(self, client: Runner, watch: Watch[T]) -> None:
        self._client, self._watch = client, watch

    @property
    def trouble(self) -> ClientError | None:
        """Why the last query failed, None while all is well."""
        return self._watch.trouble

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await self._client.run(self._watch.step())


class Registration(Kept):
    """A service that is offered while its `async with` block runs; see `AsyncClient.registration`."""

    def __init__(self, client: Runner, service: Service) -> None:
        super().__init__(service)
        self._client = client
        self._worker: Worker | None = None

    async def passing(self, output: str = "") -> None:
        """Say with this and each further heartbeat that all is well. ConfigError for a service without TTL."""
        await self._say("passing", output)

    async def warning(self, output: str) -> None:
        """Say that something is not as it should be, but the service is usable."""
        await self._say("warning", output)

    async def critical(self, output: str) -> None:
        """Say that the service cannot be used; nobody is sent here until `passing`."""
        await self._say("critical", output)

    async def maintenance(self, on: bool, reason: str = "") -> None:
        """Take the instance out of use, or back, without withdrawing it."""
        await self._client.run(discovery.maintenance(self._keeper.service.key, on, reason))

    async def __aenter__(self) -> Self:
        await self._client.run(self._keeper.start())
        self._worker = Worker(f"heartbeat {self._keeper.service.key}", self._client.run(self._keeper.run()))
        self._client.adopt(self)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.aclose()
        try:
            await self._client.run(self._keeper.stop())
        except ClientError:
            if error is None:
                raise

    async def aclose(self) -> None:
        """End the heartbeats without withdrawing the registration."""
        if self._worker is not None:
            await self._worker.stop()

    async def _say(self, status: Health, output: str) -> None:
        await self._client.run(self._keeper.say(status, output))


class Lock(LockState[asyncio.Event]):
    """A lock, a leadership or a place of a semaphore; see `AsyncClient.lock`. One task at a time uses it; it can be taken again after
    release."""

    def __init__(self, client: Runner, hold: Hold, timeout_s: float | None, cancel: bool) -> None:
        super().__init__(hold, asyncio.Event())
        self._client, self._timeout_s, self._cancel = client, timeout_s, cancel
        self._worker: Worker | None = None
        self._body: asyncio.Task[Any] | None = None
        self._cancelled = False

    async def acquire(self, timeout_s: float | None = None) -> bool:
        """Wait until it is held; False after `timeout_s` (0: one attempt)."""
        self._begin()
        taken = False
        try:
            taken = await self._client.run(self._hold.acquire(timeout_s))
        finally:
            if not taken:
                await self._tidy()
        if taken:
            self.lost.clear()
            self.taken = True
            self._worker = Worker(f"guard {self.key}", self._guard())
            self._client.adopt(self)
        return taken

    async def release(self) -> None:
        """Give it back. LockLost if it was lost before; Unreachable if the agent is away (the lock then ends with the session's TTL).
        Does nothing if it is not taken."""
        if not self.taken:
            return
        await self._unguard()
        self.taken = False
        try:
            await self._client.run(self._hold.release())
        finally:
            if self.lost.is_set():
                raise LockLost(f"the lock {self.key} was lost: {self.why_lost}")

    async def __aenter__(self) -> Self:
        if not await self.acquire(self._timeout_s):
            raise NotAcquired(f"{self.key} was not free within {self._timeout_s:g} s")
        self._body, self._cancelled = asyncio.current_task() if self._cancel else None, False
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._body = None
        if self._cancelled and isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()):
            self._cancelled = task.uncancel() == 0
        ours = self._cancelled and isinstance(error, asyncio.CancelledError)
        try:
            await self.release()
        except LockLost:
            if error is None or ours:
                raise
        except ClientError:
            pass  # the session's end gives it back

    async def aclose(self) -> None:
        """What the client's end does to a lock that is held: nobody guards it any more, so it counts as lost."""
        await self._unguard()
        if self.held:
            self._lose("the client was closed")

    async def _unguard(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def _guard(self) -> None:
        try:
            why = await self._client.run(self._hold.guard())
        except Exception as error:
            why = str(error)
        self._lose(why)
        if self._body is not None:
            self._cancelled = True
            self._body.cancel()

    async def _tidy(self) -> None:
        try:
            await self._client.run(self._hold.release())
        except ClientError:
            pass  # the session ends by itself


class Endpoints:
    """The instances of a service, one at a time; see `AsyncClient.endpoints`. For any number of tasks."""

    def __init__(self, client: Runner, changes: Changes[tuple[Instance, ...]], balancer: Balancer) -> None:
        self._client, self._changes, self._balancer = client, changes, balancer
        self._changed = asyncio.Event()
        self._known = False
        self._error: Exception | None = None
        self._worker: Worker | None = None

    @property
    def trouble(self) -> ClientError | None:
        """Why the instances may be out of date, None while they are not."""
        return self._changes.trouble

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All that there are now, also those left out."""
        return self._balancer.instances

    @asynccontextmanager
    async def use(self, timeout_s: float = 0.0, failures: tuple[type[Exception], ...] = (Exception,)) -> AsyncIterator[Instance]:
        """The instance for one use. An exception of `failures` that leaves the block counts against it.

        NoInstances if there is none within `timeout_s`.
        """
        clock = asyncio.get_running_loop().time
        instance = await self._take(clock() + timeout_s)
        ok = True
        try:
            yield instance
        except failures:
            ok = False
            raise
        finally:
            self._balancer.give_back(instance, ok, clock())

    async def __aenter__(self) -> Self:
        self._worker = Worker("endpoints", self._follow())
        self._client.adopt(self)
        try:
            async with asyncio.timeout(self._client.settings.timeout_s):
                while not self._known and self._error is None:
                    await self._change()
        except TimeoutError:
            self._error = self._changes.trouble or NoInstances("the agent did not answer in time")
        except BaseException:
            await self.aclose()
            raise
        if self._error is not None:
            await self.aclose()
            raise self._error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def _take(self, deadline: float) -> Instance:
        while self._error is None:
            now = asyncio.get_running_loop().time()
            try:
                return self._balancer.take(now)
            except NoInstances:
                if now >= deadline:
                    raise
            try:
                async with asyncio.timeout_at(deadline):
                    await self._change()
            except TimeoutError:
                pass  # once more, then give up
        raise self._error

    async def _follow(self) -> None:
        try:
            async for instances in self._changes:
                self._balancer.update(instances)
                self._known = True
                self._changed.set()
        except Exception as error:
            self._error = error
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
