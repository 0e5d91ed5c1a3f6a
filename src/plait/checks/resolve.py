# SPDX-License-Identifier: Apache-2.0
"""Names of check targets -> addresses, without ever holding up the loop or the agent's other threads.

The system's resolver blocks, for long when DNS is slow. So names are looked up in threads of their own, each name once however many checks
ask for it at the same time, and what was found is kept for a moment. Addresses are never looked up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Address = tuple[socket.AddressFamily, str]
Lookup = Callable[[str], list[Address]]
KEEP_S = 2.0
THREADS = 8
_KEPT = 10_000


def literal(host: str) -> Address | None:
    """The address that `host` is, None if it is a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family, host
    return None


def _system(host: str) -> list[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


class Resolver:
    """`lookup` blocks; it runs in a thread. Use from one loop; `close` when done."""

    def __init__(self, lookup: Lookup = _system, keep_s: float = KEEP_S) -> None:
        self._lookup, self._keep_s = lookup, keep_s
        self._threads = ThreadPoolExecutor(THREADS, "check-names")
        self._asked: dict[str, tuple[float, asyncio.Future[list[Address]]]] = {}

    async def addresses(self, host: str) -> list[Address]:
        """All addresses of `host`, in the system's order, at least one. OSError if it has none; give it a timeout."""
        found = literal(host)
        if found is not None:
            return [found]
        loop = asyncio.get_running_loop()
        until, future = self._asked.get(host, (0.0, None))
        if future is None or (future.done() and loop.time() >= until):
            if len(self._asked) >= _KEPT:
                self._asked = {name: entry for name, entry in self._asked.items() if not entry[1].done()}
            future = loop.run_in_executor(self._threads, self._lookup, host)
            self._asked[host] = loop.time() + self._keep_s, future
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(future)

    def close(self) -> None:
        """Does not wait for lookups that are under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)
