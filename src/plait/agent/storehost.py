# SPDX-License-Identifier: Apache-2.0
"""Whether the host that carries the store still lives, when the store itself cannot say so.

While the store is away nobody's sign of life can expire, so the death of its own host would go unseen. The others look for themselves: a
host that refuses the connection lives (only its agent is down, its containers run on), one that answers nothing for a while is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from plait.agent.view import View

log = logging.getLogger("plait.storehost")
SILENCE_S = 3.5
"""Seconds without any answer after which the host counts as dead. The loss of the connection itself is noticed some three seconds
after the fact, so that this too comes to the six seconds of every other node's sign of life."""
_PROBE_S = 1.5
_LOOK_S = 1.0


class StoreHost:
    """Looks at `place()` (host, port), where node `name()` carries the store, while `connected()` is false."""

    def __init__(
        self, view: View, place: Callable[[], tuple[str, int]], name: Callable[[], str | None], connected: Callable[[], bool]
    ) -> None:
        self._view, self._place, self._name, self._connected = view, place, name, connected

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            if self._connected() or await self._answers():
                heard = loop.time()
            name = self._name()
            dead = name is not None and loop.time() - heard > SILENCE_S
            self._view.judge_silent(frozenset({name}) if dead and name is not None else frozenset())
            await asyncio.sleep(_LOOK_S)

    async def _answers(self) -> bool:
        """Whether anything, a refusal too, comes back from the host."""
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await asyncio.open_connection(*self._place())
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PROBE_S):
                await writer.wait_closed()
        return True
