# SPDX-License-Identifier: Apache-2.0
"""What the DNS child counts -> figures of `agent/metrics`, and conditions while queries go without their answer."""

from __future__ import annotations

import asyncio

from plait.agent.health import Health
from plait.serve.dns_parent import DnsService, DnsUnavailable
from plait.services.figures import Reading

EVERY_S = 1.0
CALM_S = 10.0
"""Seconds without one more after which a condition ends."""
COUNTED = {
    "dns-forwards-refused": (
        "forward_rejected",
        "{more} queries in a second were answered SERVFAIL: as many as dns.upstream_limit allows wait for the resolvers",
    ),
    "dns-client-limited": ("client_limited", "{more} queries in a second were above dns.client_rate, the last one of {client}"),
    "dns-unheeded": (
        "answers_unheeded",
        "{more} answers in a second went out before this agent had let policies know of them: the connections that follow may be refused",
    ),
    "dns-late": ("expired", "{more} queries in a second were dropped: they had waited for more than dns.client_timeout"),
}
"""Condition -> what the child counts of it, and its text."""


class DnsWatch:
    """Looks every second. `figures` are those of the last look, none before the first."""

    def __init__(self, dns: DnsService, health: Health) -> None:
        self._dns, self._health = dns, health
        self._pid = 0
        self._seen: dict[str, int] = {}
        self._since: dict[str, float] = {}
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
            self._pid, self._seen = stats.pid, {}
        counts = {**stats.counters, "restarts": stats.restarts, "names": stats.names}
        self.figures = [Reading(f"plait.dns.{name}", float(value)) for name, value in counts.items()]
        for code, (counter, text) in COUNTED.items():
            more = stats.counters[counter] - self._seen.get(code, 0)
            self._seen[code] = stats.counters[counter]
            self._judge(code, more, text.format(more=more, client=stats.limited))

    def _judge(self, code: str, more: int, text: str) -> None:
        if more > 0:
            self._since[code] = 0.0
            self._health.set(code, "dns", text)
        elif (since := self._since.get(code, CALM_S) + EVERY_S) >= CALM_S:
            self._health.clear(code, "dns")
        else:
            self._since[code] = since
