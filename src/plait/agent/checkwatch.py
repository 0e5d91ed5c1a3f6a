# SPDX-License-Identifier: Apache-2.0
"""What the operator should know about this node's checks and its place in the catalogue -> health conditions.

Checks that wait for their turn; records of this node that others put into the catalogue. Those are never erased: an agent owns what was
registered with it, and says here that there is more.
"""

from __future__ import annotations

import asyncio

from plait.agent.checkup import Checkup
from plait.agent.health import Health
from plait.agent.keys import kept_key
from plait.agent.view import View
from plait.model.discovery import Check

LATE_S = 5.0
_LOOK_S = 2.0


class CheckWatch:
    """`run` never returns."""

    def __init__(self, view: View, checkup: Checkup, health: Health) -> None:
        self._view, self._checkup, self._health = view, checkup, health
        self._dirty, self._known = True, dict[str, str]()
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if self._known or any(kind.startswith("catalog") for kind in kinds):
            self._dirty = True

    async def run(self) -> None:
        while True:
            self.once()
            await asyncio.sleep(_LOOK_S)

    def once(self) -> None:
        """Bring the conditions in line with what is."""
        waiting, longest = self._checkup.overdue()
        late = {"checks": f"{waiting} health checks are due and wait, the longest for {longest:.0f} s"} if longest > LATE_S else {}
        self._health.replace("checks-late", late)
        if self._dirty:
            self._dirty = False
            self._known = self._conflicts()
            self._health.replace("catalog-conflict", self._known)

    def _conflicts(self) -> dict[str, str]:
        """By subject; what is in the catalogue under this node's name."""
        me, own = self._view.me, self._view.own_records()
        found: dict[str, str] = {}
        if (key := kept_key(("node", me))) in self._view.stored(key):
            found[f"node {me}"] = f"the catalogue has a node {me!r} too; what this agent says of itself counts"
        for kind in ("instances", "checks"):
            prefix = f"catalog/{kind}/{me}/"
            for key in self._view.stored(prefix):
                record_id = key.removeprefix(prefix)
                mine = own.get(f"{kind}/{me}/{record_id}")
                if isinstance(mine, Check) and mine.service_id:
                    whose = f"this agent has one of the same id, of service {mine.service_id!r}, which counts"
                elif mine is not None:
                    whose = "this agent has one of the same id, which counts"
                else:
                    whose = "this agent has none of that id; clients see the catalogue's"
                what = "service" if kind == "instances" else "check"
                found[f"{what} {record_id}"] = f"the catalogue has a {what} {record_id!r} on this node; {whose}"
        return found
