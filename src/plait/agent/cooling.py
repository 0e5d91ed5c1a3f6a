# SPDX-License-Identifier: Apache-2.0
"""Addresses that were released a moment ago: peers, caches and firewalls of others may still mean the container that had them.

Counted by a clock that does not jump. Nothing is kept over a restart of the agent: what it finds released counts as released then. A
network that is made again under its name begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address


class Cooling:
    """`after_s` 0: none is. `made` gives the revision at which a network was made, 0 while it is not known."""

    def __init__(self, after_s: float, clock: Callable[[], float], made: Callable[[str], int]) -> None:
        self._after_s, self._clock, self._made = after_s, clock, made
        self._released: dict[tuple[str, IPv4Address], tuple[float, int]] = {}

    def began(self, network: str, address: IPv4Address) -> None:
        if self._after_s:
            self._released[network, address] = self._clock(), self._made(network)

    def of(self, network: str) -> set[IPv4Address]:
        since, now = self._clock() - self._after_s, self._made(network)
        for where, (at, made) in list(self._released.items()):
            if at <= since:
                del self._released[where]
            elif where[0] == network and not made:  # found at the start, before the network was known
                self._released[where] = at, now
        return {address for (where, address), (_, made) in self._released.items() if where == network and made in (0, now)}
