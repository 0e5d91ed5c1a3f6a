# SPDX-License-Identifier: Apache-2.0
"""A commit on its way to the disk, and what its result is awaited by: a future that is made for many at once.

Data in: a commit, later its fate. Data out: calls of those who wait. `asyncio.Future` asks the loop when it is made and takes a round of
the loop for each that waits, together a good part of what a short write costs; the writes of a batch are told in one. A task awaits it as
any future.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import msgspec

from plait.store.state import Commit

T = TypeVar("T")


class Write(msgspec.Struct, Generic[T], eq=False):
    """`value` is the result when the commit is durable. Writes of one generation were evaluated on top of each other; `floor`: the log up
    to that revision may go. What asyncio asks of a future that is not its own (`asyncio.isfuture`) is here, and nothing more."""

    generation: int
    commit: Commit
    floor: int
    value: T
    is_done: bool = False
    error: BaseException | None = None
    waiting: list[tuple[Callable[[Any], object], contextvars.Context | None]] | None = None
    _asyncio_future_blocking: bool = False

    def tell(self, error: BaseException | None = None) -> None:
        """Its fate is known. Tasks go on in the next round of the loop, other callbacks are called now. No matter if it was told before."""
        if self.is_done:
            return
        self.is_done, self.error = True, error
        waiting, self.waiting = self.waiting, None
        for callback, context in waiting or ():
            if context is not None:
                asyncio.get_running_loop().call_soon(callback, self, context=context)
                continue
            try:
                callback(self)
            except Exception as fault:  # is logged, as any callback's; the others are called
                told = {"message": f"in a callback of the write of revision {self.commit.revision}", "exception": fault}
                asyncio.get_running_loop().call_exception_handler(told)

    def __await__(self) -> Generator[Write[T], None, T]:
        if not self.is_done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    # --- what asyncio calls

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def add_done_callback(self, callback: Callable[[Write[T]], object], *, context: contextvars.Context | None = None) -> None:
        """Have `callback(self)` called when the fate is known; soon, if it is already."""
        if self.is_done:
            asyncio.get_running_loop().call_soon(callback, self, context=context)
        elif self.waiting is None:
            self.waiting = [(callback, context)]
        else:
            self.waiting.append((callback, context))

    def remove_done_callback(self, callback: Callable[[Write[T]], object]) -> int:
        """The number of times that it was to be called."""
        waiting = self.waiting or []
        self.waiting = [waiter for waiter in waiting if waiter[0] != callback]
        return len(waiting) - len(self.waiting)

    def cancel(self, msg: object = None) -> bool:
        """Nobody waits any more; the write goes on. False if its fate is known."""
        if self.is_done:
            return False
        self.tell(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def done(self) -> bool:
        return self.is_done

    def cancelled(self) -> bool:
        return isinstance(self.error, asyncio.CancelledError)

    def exception(self) -> BaseException | None:
        """Why it is not durable. CancelledError if it was cancelled, InvalidStateError if nothing is known yet."""
        if not self.is_done:
            raise asyncio.InvalidStateError("the write is on its way")
        if self.cancelled():
            assert self.error is not None
            raise self.error
        return self.error

    def result(self) -> T:
        """The value, or what `exception` gives or raises is raised."""
        if not self.is_done or self.error is not None:
            error = self.exception()
            assert error is not None
            raise error
        return self.value
