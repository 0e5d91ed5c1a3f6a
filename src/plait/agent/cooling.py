# SPDX-License-Identifier: Apache-2.0
"""Addresses that were released a moment ago: peers, caches and firewalls of others may still mean the container that had them.

Counted by a clock that does not jump. Nothing is kept over a restart of the agent: what it finds released counts as released then.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address


class Cooling:
    """`after_s` 0: none is."""

    def __init__(self, after_s: float, clock: Callable[[], float]) -> None:
        self._after_s, self._clock = after_s, clock
        self._released: dict[tuple[str, IPv4Address], float] = {}

    def began(self, network: str, address: IPv4Address) -> None:
        if self._after_s:
            self._released[network, address] = self._clock()

    def of(self, network: str) -> set[IPv4Address]:
        since = self._clock() - self._after_s
        self._released = {where: at for where, at in self._released.items() if at > since}
        return {address for where, address in self._released if where == network}
