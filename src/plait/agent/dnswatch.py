# SPDX-License-Identifier: Apache-2.0
"""What the DNS child counts -> figures of `agent/metrics`, and a condition while queries for other names are turned away."""

from __future__ import annotations

import asyncio

from plait.agent.health import Health
from plait.serve.dns_parent import DnsService, DnsUnavailable
from plait.services.figures import Reading

CODE = "dns-forwards-refused"
EVERY_S = 1.0
CALM_S = 10.0
"""Seconds without a query turned away after which the condition ends."""


class DnsWatch:
    """Looks every second. `figures` are those of the last look, none before the first."""

    def __init__(self, dns: DnsService, health: Health) -> None:
        self._dns, self._health = dns, health
        self._pid, self._rejected, self._since = 0, 0, CALM_S
        self.figures: list[Reading] = []

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Ask the child once; one that is being replaced is asked the next time."""
        try:
            stats = await self._dns.stats()
        except DnsUnavailable:
            return
        if stats.pid != self._pid:
            self._pid, self._rejected = stats.pid, 0
        counts = {**stats.counters, "restarts": stats.restarts, "names": stats.names}
        self.figures = [Reading(f"plait.dns.{name}", float(value)) for name, value in counts.items()]
        self._judge(stats.counters["forward_rejected"])

    def _judge(self, rejected: int) -> None:
        self._since = 0.0 if rejected > self._rejected else self._since + EVERY_S
        more, self._rejected = rejected - self._rejected, rejected
        if more > 0:
            text = f"{more} queries in a second were answered SERVFAIL: as many as dns.upstream_limit allows wait for the resolvers"
            self._health.set(CODE, "dns", text)
        elif self._since >= CALM_S:
            self._health.clear(CODE, "dns")
