# SPDX-License-Identifier: Apache-2.0
"""What the blocking client hands out: iterators over changes, registrations, locks, endpoints.

Data in: method calls. Data out: results; background work (heartbeats, guards of locks, watches behind endpoints) runs in daemon threads
that end with what started them, at the latest with the client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, ParamSpec, Protocol, Self, TypeVar, overload

from plait.client import discovery
from plait.client.balance import Balancer
from plait.client.discovery import Health, Service
from plait.client.errors import ClientError, Closed, LockLost, NoInstances, NotAcquired
from plait.client.facade import Kept, LockState, Operation
from plait.client.lock import Hold
from plait.client.settings import Settings
from plait.client.steps import Steps
from plait.client.sync_io import Stop
from plait.client.types import Instance
from plait.client.watch import Query, Watch

P = ParamSpec("P")
T = TypeVar("T")


class Closes(Protocol):
    """What ends with the client."""

    def close(self) -> None: ...


class Runner(Protocol):
    """What the parts need of the client."""

    settings: Settings
    wait_s: float

    def run(self, steps: Steps[T], stop: Stop | None = None) -> T: ...

    def adopt(self, part: Closes) -> None: ...


class method(Operation[P, Steps[T]]):  # noqa: N801 (used like a decorator)
    """An operation as a method of whatever can run it: same arguments, its result."""

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: Runner, kind: type) -> Callable[P, T]: ...
    def __get__(self, owner: Runner | None, kind: type) -> Self | Callable[P, T]:
        if owner is None:
            return self

        def bound(*args: P.args, **kwargs: P.kwargs) -> T:
            return owner.run(self._core(*args, **kwargs))

        bound.__doc__ = self.__doc__
        return bound


class watching(Operation[P, Query[T]]):  # noqa: N801 (used like a decorator)
    """A query as a method that returns an iterator over its changes."""

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
    """A daemon thread that runs one function until it returns or is stopped."""

    def __init__(self, name: str, work: Callable[[Stop], None]) -> None:
        self.stop_flag = Stop()
        self._work = work
        self._thread = threading.Thread(target=self._run, name=f"plait.client {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.stop_flag.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self.stop_flag)
        except Closed:
            pass


class Changes(Generic[T]):
    """An iterator over the values of a query: the present one first, then each that differs. Waits through the agent's absences.

    `trouble` is why the last query failed, None while all is well. `close`, also from another thread, ends the iteration.
    """

    def __init__(self, client: Runner, watch: Watch[T]) -> None:
        self._client, self._watch, self._stop = client, watch, Stop()
        client.adopt(self)

    @property
    def trouble(self) -> ClientError | None:
        """Why the last query failed, None while all is well."""
        return self._watch.trouble

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._stop.stopped:
            raise StopIteration
        try:
            return self._client.run(self._watch.step(), self._stop)
        except Closed:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop.set()


class Registration(Kept):
    """A service that is offered while its `with` block runs; see `Client.registration`."""

    def __init__(self, client: Runner, service: Service) -> None:
        super().__init__(service)
        self._client = client
        self._worker: Worker | None = None

    def passing(self, output: str = "") -> None:
        """Say with this and each further heartbeat that all is well. ConfigError for a service without TTL."""
        self._say("passing", output)

    def warning(self, output: str) -> None:
        """Say that something is not as it should be, but the service is usable."""
        self._say("warning", output)

    def critical(self, output: str) -> None:
        """Say that the service cannot be used; nobody is sent here until `passing`."""
        self._say("critical", output)

    def maintenance(self, on: bool, reason: str = "") -> None:
        """Take the instance out of use, or back, without withdrawing it."""
        self._client.run(discovery.maintenance(self._keeper.service.key, on, reason))

    def __enter__(self) -> Self:
        self._client.run(self._keeper.start())
        client, keeper = self._client, self._keeper
        self._worker = Worker(f"heartbeat {keeper.service.key}", lambda stop: client.run(keeper.run(), stop))
        client.adopt(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        try:
            self._client.run(self._keeper.stop())
        except ClientError:
            if error is None:
                raise

    def close(self) -> None:
        """End the heartbeats without withdrawing the registration."""
        if self._worker is not None:
            self._worker.stop()

    def _say(self, status: Health, output: str) -> None:
        self._client.run(self._keeper.say(status, output))


class Lock(LockState[threading.Event]):
    """A lock, a leadership or a place of a semaphore; see `Client.lock`. One thread at a time uses it; it can be taken again after
    release."""

    def __init__(self, client: Runner, hold: Hold, timeout_s: float | None, on_loss: Callable[[str], None] | None) -> None:
        super().__init__(hold, threading.Event())
        self._client, self._timeout_s, self._on_loss = client, timeout_s, on_loss
        self._worker: Worker | None = None

    def acquire(self, timeout_s: float | None = None) -> bool:
        """Wait until it is held; False after `timeout_s` (0: one attempt)."""
        self._begin()
        try:
            if not self._client.run(self._hold.acquire(timeout_s)):
                self._tidy()
                return False
        except BaseException:
            self._tidy()
            raise
        self.lost.clear()
        self.taken = True
        self._worker = Worker(f"guard {self.key}", self._guard)
        self._client.adopt(self)
        return True

    def release(self) -> None:
        """Give it back. LockLost if it was lost before; Unreachable if the agent is away (the lock then ends with the session's TTL).
        Does nothing if it is not taken."""
        if not self.taken:
            return
        self._unguard()
        self.taken = False
        try:
            self._client.run(self._hold.release())
        finally:
            if self.lost.is_set():
                raise LockLost(f"the lock {self.key} was lost: {self.why_lost}")

    def __enter__(self) -> Self:
        if not self.acquire(self._timeout_s):
            raise NotAcquired(f"{self.key} was not free within {self._timeout_s:g} s")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.release()
        except LockLost:
            if error is None:
                raise
        except ClientError:
            pass  # the session's end gives it back

    def close(self) -> None:
        """What the client's end does to a lock that is held: nobody guards it any more, so it counts as lost."""
        self._unguard()
        if self.held:
            self._lose("the client was closed")

    def _unguard(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def _guard(self, stop: Stop) -> None:
        try:
            why = self._client.run(self._hold.guard(), stop)
        except Closed:
            raise
        except Exception as error:
            why = str(error)
        self._lose(why)
        if self._on_loss is not None:
            self._on_loss(why)

    def _tidy(self) -> None:
        try:
            self._client.run(self._hold.release())
        except ClientError:
            pass  # the session ends by itself


class Endpoints:
    """The instances of a service, one at a time; see `Client.endpoints`. For any number of threads."""

    def __init__(self, client: Runner, changes: Changes[tuple[Instance, ...]], balancer: Balancer) -> None:
        self._client, self._changes, self._balancer = client, changes, balancer
        self._changed = threading.Condition()
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
        with self._changed:
            return self._balancer.instances

    @contextmanager
    def use(self, timeout_s: float = 0.0, failures: tuple[type[Exception], ...] = (Exception,)) -> Iterator[Instance]:
        """The instance for one use. An exception of `failures` that leaves the block counts against it.

        NoInstances if there is none within `timeout_s`.
        """
        instance = self._take(timeout_s)
        ok = True
        try:
            yield instance
        except failures:
            ok = False
            raise
        finally:
            with self._changed:
                self._balancer.give_back(instance, ok, time.monotonic())

    def __enter__(self) -> Self:
        self._worker = Worker("endpoints", self._follow)
        self._client.adopt(self)
        with self._changed:
            self._changed.wait_for(lambda: self._known or self._error is not None, self._client.settings.timeout_s)
            error = self._error or (None if self._known else self._changes.trouble or NoInstances("the agent did not answer in time"))
        if error is not None:
            self.close()
            raise error
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._changes.close()
        if self._worker is not None:
            self._worker.stop()

    def _take(self, timeout_s: float) -> Instance:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._error is None:
                try:
                    return self._balancer.take(time.monotonic())
                except NoInstances:
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                        raise
            raise self._error

    def _follow(self, stop: Stop) -> None:
        try:
            for instances in self._changes:
                with self._changed:
                    self._balancer.update(instances)
                    self._known = True
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
