# SPDX-License-Identifier: Apache-2.0
"""One DHCP lease a network for this host itself, from when the agent starts on, which all of the network's containers here share.

Data in: networks with the option `lease`, which names the link to ask on. Data out: what of them this host has (`known`, for the plan), the
condition `lease-none`. The server sees the link's own MAC and a client id of the network's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from plait.agent.dhcp import Leases
from plait.agent.view import View
from plait.ipam import Reservation
from plait.model.errors import PlaitError
from plait.plan.hostlease import HostLease
from plait.runtimes.api import Health

OWNER = "host:"
"""What the owner of such a lease begins with; the network's name follows."""
NONE = "lease-none"
AGAIN_S = 5.0
"""Between two tries to get what is lacking."""


class HostLeases:
    """`mac_of(link)`: that of a link of this host; `announce(link, address)` tells its neighbours that the address is there. OSError if
    there is no such link."""

    def __init__(
        self, view: View, leases: Leases, health: Health, mac_of: Callable[[str], str], announce: Callable[[str, IPv4Address], None]
    ) -> None:
        self._view, self._leases, self._health, self._mac_of, self._announce = view, leases, health, mac_of, announce
        self._dirty = asyncio.Event()
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if "networks" in kinds:
            self._dirty.set()

    @property
    def known(self) -> dict[str, HostLease]:
        """What this host has now, by network; without what was lost."""
        found = {r.owner.removeprefix(OWNER): r for r in self._leases.all() if r.owner.startswith(OWNER)}
        return {name: HostLease(r.link, r.lease.four) for name, r in found.items() if r.lease is not None}

    def reservations(self) -> list[Reservation]:
        """The same as what people are shown."""
        return [Reservation(name, lease.address, f"{OWNER}{lease.link}", self._view.me) for name, lease in self.known.items()]

    async def run(self, mark: Callable[[], None]) -> None:
        """Never returns. `mark`: the plan is another one."""
        while True:
            self._dirty.clear()
            wanted = {n.name: n.options["lease"] for n in self._view.snapshot.networks.values() if n.options.get("lease")}
            await self._give_back(wanted)
            lacking = await self._obtain(wanted)
            self._health.replace(NONE, lacking)
            mark()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if lacking else None):
                    await self._dirty.wait()

    async def _give_back(self, wanted: Mapping[str, str]) -> None:
        for record in self._leases.all():
            name = record.owner.removeprefix(OWNER)
            if record.owner.startswith(OWNER) and wanted.get(name) != record.link:
                await self._leases.release(record.owner)

    async def _obtain(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """What each network lacks still, in words."""
        lacking: dict[str, str] = {}
        for name, link in wanted.items():
            if self._leases.of(f"{OWNER}{name}") is not None:
                continue
            try:
                mac = self._mac_of(link)
                lease = await self._leases.obtain(link, name, f"{OWNER}{name}", mac, self._view.me)
                self._announce(link, lease.four)
            except (PlaitError, OSError) as error:
                text = str(error) if isinstance(error, PlaitError) else f"this host has no link {link} ({error.strerror})"
                lacking[name] = f"network {name}: {text}"
        return lacking
