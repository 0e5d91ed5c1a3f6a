# SPDX-License-Identifier: Apache-2.0
"""The event loop of the DNS child: file descriptors -> handlers, on epoll. Level-triggered, one thread, no timers.

`asyncio` and `selectors` would do, but cost the child more memory than all of its own code.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

Handler = Callable[[int], None]
"""Called with the ready events of its descriptor, of `READ`, `WRITE` and, always watched for, `GONE`."""

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
"""The connection is closed both ways or broken."""
LONGEST = 1.0
"""Seconds that one round waits at most, so that `before` is never long ago unless the process was held up."""


class Reactor:
    """Which handler is told when which descriptor is ready. `before`: when the round before this one was told what is ready
    (time.monotonic()); what was not ready then has come since."""

    def __init__(self) -> None:
        self.before = self._now = time.monotonic()
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._removed: set[int] = set()

    def add(self, fd: int, events: int, handler: Handler) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`, which must be open still. An event of this round that is yet to be told is dropped, even if the
        number is given to another socket meanwhile."""
        del self._handlers[fd]
        self._removed.add(fd)
        self._epoll.unregister(fd)

    def poll(self, timeout: float | None) -> None:
        """One round: tell the handlers of all descriptors that become ready within `timeout` seconds (`LONGEST` at most)."""
        self._removed.clear()
        ready = self._epoll.poll(LONGEST if timeout is None else min(timeout, LONGEST))
        self.before, self._now = self._now, time.monotonic()
        for fd, events in ready:
            if fd not in self._removed:
                self._handlers[fd](events)
