# SPDX-License-Identifier: Apache-2.0
"""What rules of other programs mean for this node: which of plait's short ways may be used, and which chains stop what is forwarded.

Data in: the tables of others (`kernel.linux.foreign`). Data out: `Firewall.fast_path` and `trusting` for the plan, the conditions
`firewall-drops` and `ports-past-input`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from plait.agent.health import Health
from plait.agent.underlay import Underlay
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.foreign import Guards
from plait.plan.fastpath import CAPABILITY
from plait.plan.shortcut import CAPABILITY as SHORTCUT
from plait.plan.shortcut import FastPath

log = logging.getLogger("plait.node")
_APART_S = 0.2
"""Least time between two looks at the rules of others: many attaches change our own table in a moment."""
_LONGEST_S = 5.0
_SHOWN = 5
"""So many ports a condition names."""


class Firewall:
    """`wanted` is the option `node.fast_path`, `able` says what the kernel can do by now, `open_ports` which published ports are for
    everybody."""

    def __init__(
        self,
        kernel: LinuxKernel,
        underlay: Underlay,
        health: Health,
        wanted: bool,
        able: Callable[[], frozenset[str]],
        open_ports: Callable[[], Sequence[str]],
    ) -> None:
        self._kernel, self._underlay, self._health = kernel, underlay, health
        self._wanted, self._able, self._open_ports = wanted, able, open_ports
        self._dirty = asyncio.Event()
        self._guards: Guards | None = None

    @property
    def fast_path(self) -> FastPath:
        """What traffic inside a network may go round: the host's IP stack, and everything that the host does to what it receives. Only
        while nobody else's rules would have to see it there."""
        guards, able = self._guards, self._able()
        if not self._wanted or CAPABILITY not in able or guards is None or guards.passing:
            return FastPath()
        return FastPath(True, self._underlay.link if SHORTCUT in able and not guards.received else "")

    @property
    def trusting(self) -> bool:
        """Whether nobody else's rules judge what the host itself receives and sends, which they may do by its connection: then the packets
        of the encrypted tunnel need none."""
        guards = self._guards
        return guards is not None and not guards.received and not guards.sent

    def changed(self) -> None:
        """Somebody, perhaps this agent, changed an nft table."""
        self._dirty.set()

    async def look(self) -> bool:
        """Learn whose rules traffic must meet, and whether the host is strict about sources; True if that has changed."""
        before, guards = self._guards, await asyncio.to_thread(self._kernel.foreign_guards)
        self._guards = guards
        if before is not None and before != guards:
            has = self.fast_path
            said = ", ".join(sorted(guards.passing | guards.received))
            log.info("fast_path", extra={"on": has.ingress, "shortcut": has.link, "guards": said})
        return self._underlay.look_at_sources() or before != guards

    async def watch(self, changed: Callable[[], None]) -> None:
        """Name foreign chains that stop what is forwarded, and obey them: `changed` is called when the plan is another. Never returns."""
        while True:
            self._dirty.clear()
            if await self.look():
                changed()
            self._health.replace("firewall-drops", await asyncio.to_thread(self._kernel.foreign_drops))
            self._health.replace("ports-past-input", past_input(self._guards or Guards(), self._open_ports()))
            await asyncio.sleep(_APART_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_S):
                    await self._dirty.wait()


def past_input(guards: Guards, open_ports: Sequence[str]) -> dict[str, str]:
    """What to say of each table that keeps some from the host itself: what goes to a container is forwarded, and not seen there."""
    if not open_ports:
        return {}
    shown = ", ".join(open_ports[:_SHOWN]) + (f" and {len(open_ports) - _SHOWN} more" if len(open_ports) > _SHOWN else "")
    return {
        table: f"table {table} drops some of what this host receives, and does not see what goes to published ports: {shown}"
        for table in guards.own
    }
