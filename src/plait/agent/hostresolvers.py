# SPDX-License-Identifier: Apache-2.0
"""The host's own resolvers, which names outside plait are forwarded to unless the configuration names others: read from resolv.conf
and followed as that changes (DHCP, a VPN). Source: resolv.conf(5).

Data in: the file. Data out: upstreams. A file that is gone or names none means that there are none; plait's own addresses among them
are passed over by `DnsService`, so that the host itself may ask plait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from plait.agent.dnssettings import DnsSettings, resolver
from plait.serve.dns_link import Address, Upstreams
from plait.serve.dns_parent import DnsUnavailable

log = logging.getLogger("plait.dns")
RESOLV_CONF = Path("/etc/resolv.conf")
EVERY_S = 1.0
"""Between two looks at the file."""


def nameservers(text: str) -> tuple[Address, ...]:
    """The servers that a resolv.conf names, in order, each once; what is no address is passed over, as by the C library."""
    found: dict[Address, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found[resolver(words[1].partition("%")[0])] = None
            except ValueError:
                continue
    return tuple(found)


class HostResolvers:
    """`tell` hands upstreams to the DNS process. Those of the configuration count if it names any (an empty list: none at all)."""

    def __init__(self, tell: Callable[[Upstreams], Awaitable[None]], path: Path = RESOLV_CONF) -> None:
        self._tell, self._path = tell, path
        self._settings: DnsSettings | None = None
        self._seen: tuple[Address, ...] | None = None

    async def configure(self, settings: DnsSettings) -> None:
        """Use these settings from now on. Raises what `tell` raises."""
        self._settings, self._seen = settings, None
        if settings.follow_host:
            await self.look()
        else:
            await self._tell(settings.upstreams)

    async def look(self) -> None:
        """Take the file as it is now."""
        settings = self._settings
        if settings is None or not settings.follow_host:
            return
        try:
            found = nameservers(self._path.read_text(errors="replace"))
        except OSError:
            found = ()
        if found == self._seen:
            return
        told = settings.upstreams
        await self._tell(Upstreams(found, told.random, told.timeout, told.outstanding))
        self._seen = found
        log.info("host_resolvers", extra={"addresses": " ".join(address for address, _ in found)})

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(EVERY_S)
            with contextlib.suppress(DnsUnavailable):  # told the next time
                await self.look()
