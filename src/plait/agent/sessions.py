# SPDX-License-Identifier: Apache-2.0
"""Ends sessions whose time is over: their sign of life has gone, or their node or one of their checks failed.

Runs on one node, the one that carries the store: it is alive whenever anything can be written at all. Driven by state: after a
crash the next round finds the same sessions, and keys that a session left behind when somebody was cut off in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from plait.agent.kv import Kv
from plait.agent.view import View
from plait.model.errors import PlaitError
from plait.services.sessions import missing

log = logging.getLogger("plait.sessions")
_ROUND_S = 5.0
"""A round is made at least so often; each change of a session, check or node makes one at once."""


class SessionSteward:
    """`drop_unbound` removes what else was bound to sessions that are no more, and says how many it were."""

    def __init__(self, kv: Kv, view: View, drop_unbound: Callable[[], Awaitable[int]] | None = None) -> None:
        self._kv, self._drop_unbound = kv, drop_unbound
        self._changed = asyncio.Event()
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & {"alive", "checks", "nodes"}:
            self._changed.set()

    async def run(self) -> None:
        """Never returns. What fails is tried again with the next round."""
        self._kv.session_waiters.join("", True, self._changed.set)
        while True:
            self._changed.clear()
            try:
                await self.once()
            except PlaitError as error:
                log.warning("sessions_unended", extra={"error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._changed.wait()

    async def once(self) -> int:
        """End all sessions that must end now; how many it were."""
        snapshot = self._kv.snapshot()
        ended = [(session_id, "it is no more") for session_id in self._kv.orphans()]
        for session in list(self._kv.sessions.values()):
            why = missing(session, snapshot) if self._kv.lives(session) else "nobody renewed it"
            if why:
                ended.append((session.id, why))
        for session_id, why in ended:
            await self._kv.end_session(session_id, why)
        if self._drop_unbound is not None:
            await self._drop_unbound()
        return len(ended)
