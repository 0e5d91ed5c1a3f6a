# SPDX-License-Identifier: Apache-2.0
"""Which of many sockets may be read or written, asked of the kernel for all of them at once.

Data in: sockets, and what of each is waited for. Data out: calls of those that are ready, in a callback of the loop. It is an epoll(7) of
its own in that of the loop, level-triggered as that. asyncio's loop makes a handle for each socket that it watches, and runs each in a
context: a good part of what a short request costs, and of what a parked connection holds.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
_MOST = 256
"""Sockets that are served in one round of the loop."""


class Watched(Protocol):
    def ready(self, events: int) -> None:
        """`events`: READ, WRITE, and those of epoll that come unasked, which are an error or the end of a connection."""
        ...


class Readiness:
    """Used from one loop only. It has an open file while anything is watched."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, Watched] = {}
        self._epoll: select.epoll | None = None

    def watch(self, fd: int, events: int, who: Watched) -> None:
        """Have `who.ready` called while any of `events` hold, in place of what was said of `fd` before; for 0 no more, also if nothing was
        watched. Before it is closed, a file must be watched no more."""
        if not events:
            self._forget(fd)
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._look)
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = who

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is None or self._epoll is None:
            return
        if self._watched:
            self._epoll.unregister(fd)
        else:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        assert self._epoll is not None, "called though nothing is watched"
        watched = self._watched
        for fd, events in self._epoll.poll(0, _MOST):
            who = watched.get(fd)  # one before it may have ended it
            if who is not None:
                try:
                    who.ready(events)
                except Exception as fault:  # the others are served
                    self._loop.call_exception_handler({"message": f"in what watches file {fd}", "exception": fault})
