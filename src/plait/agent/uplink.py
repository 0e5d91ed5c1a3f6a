# SPDX-License-Identifier: Apache-2.0
"""The queues of the host's link, by which priorities are kept: whether they can be there, and the condition `priority-unkept`.

Data in: what the configuration says of the link, what the kernel has at its root, this node's endpoints. Data out: `Uplink` for the plan.
What somebody else has at the root of the link stays, and is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from plait.agent.health import Health
from plait.model.errors import ConfigError
from plait.model.limits import parse_rate
from plait.shaping import EGRESS, QUEUES, Uplink

CODE = "priority-unkept"


@dataclass(frozen=True, slots=True)
class UplinkSettings:
    """How fast the host's link is, bit/s (0: not said), and what part of it each class has, as numbers against each other."""

    rate: int
    weights: tuple[int, int, int]


def uplink_settings(rate: str, weights: str, where: str) -> UplinkSettings:
    """Of the words of the configuration. ConfigError."""
    parts = weights.split("/")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and 0 < int(part) <= 100 for part in parts):
        raise ConfigError(f"{where}: uplink.weights", weights, "are no weights", "write three numbers from 1 to 100, as 60/30/10")
    first, second, third = map(int, parts)
    return UplinkSettings(parse_rate(rate, f"{where}: uplink.rate"), (first, second, third))


class Roots(Protocol):
    """What is asked of the kernel (`kernel.linux.LinuxKernel`), in a thread, for it may block."""

    def foreign_root(self, dev: str) -> str: ...


class UplinkQueues:
    """`settings` as configured, `link` names the host's link, `asked` the containers here that have a priority; `changed` is called when
    the plan may be another."""

    def __init__(
        self,
        settings: UplinkSettings,
        kernel: Roots,
        health: Health,
        link: Callable[[], str],
        asked: Callable[[], Collection[str]],
        changed: Callable[[], None],
    ) -> None:
        self._rate, self._weights, self._kernel, self._health = settings.rate, settings.weights, kernel, health
        self._link, self._asked, self._changed = link, asked, changed
        self._foreign = ""

    @property
    def now(self) -> Uplink:
        return Uplink(self._link(), self._rate, self._weights, self._foreign)

    async def look(self) -> None:
        """Learn what is at the root of the link, and bring the condition in line."""
        link, before = self._link(), self._foreign
        self._foreign = await asyncio.to_thread(self._kernel.foreign_root, link) if link and self._rate else ""
        if self._foreign != before:
            self._changed()
        self._health.replace(CODE, {link: text} if link and (text := self._text(link)) else {})

    def lacking(self, able: Collection[str]) -> dict[str, str]:
        """What the kernel lacks for it, by what to call it."""
        lacks = {QUEUES: "sch_htb", EGRESS: "chains at a link's egress (Linux 5.16, CONFIG_NETFILTER_EGRESS)"}
        missing = [what for name, what in lacks.items() if name not in able]
        return {"priorities": f"priorities on the host's link need {' and '.join(missing)}"} if missing and self._rate else {}

    def _text(self, link: str) -> str:
        if self._foreign:
            return f"{link} has the queueing discipline {self._foreign} of somebody else at its root, which plait leaves"
        names = sorted(self._asked()) if not self._rate else []
        return f"nobody has said how fast {link} is (uplink.rate), so that {', '.join(names)} only have marks" if names else ""
