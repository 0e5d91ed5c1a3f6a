# SPDX-License-Identifier: Apache-2.0
"""The event loop of the DNS child: file descriptors -> handlers, on epoll. Level-triggered, one thread, no timers.

`asyncio` and `selectors` would do, but cost the child more memory than all of its own code.
"""

from __future__ import annotations

import select
from collections.abc import Callable

Handler = Callable[[int], None]
"""Called with the ready events of its descriptor, of `READ`, `WRITE` and, always watched for, `GONE`."""

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
"""The connection is closed both ways or broken."""


class Reactor:
    """Which handler is told when which descriptor is ready."""

    def __init__(self) -> None:
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
        """Tell the handlers of all descriptors that become ready within `timeout` seconds (None: wait for one)."""
        self._removed.clear()
        for fd, events in self._epoll.poll(timeout):
            if fd not in self._removed:
                self._handlers[fd](events)
