# SPDX-License-Identifier: Apache-2.0
"""What becomes of an endpoint when its DHCP lease becomes another one, or is lost: its record, its names, the link in its sandbox.

An engine that has told its users an address (`docker inspect`) goes on telling it; that is a condition. Data in: owners of leases
(`Leases.changes`). Data out: changed endpoints in the view, and links that have another address.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address

from plait.agent.admin import netns_of_containers
from plait.agent.dhcp import MOVED, Leases
from plait.agent.hostleases import OWNER as HOST
from plait.agent.operations import AgentOperations
from plait.agent.view import View
from plait.dhcp.client import Lease
from plait.model.cluster import Endpoint
from plait.model.errors import PlaitError
from plait.model.hostlinks import ChildLink
from plait.plan.desired import child_link
from plait.runtimes.api import Health, paired

log = logging.getLogger("plait.dhcp")
_TOLD = frozenset({"docker"})
"""Runtimes whose engine keeps showing the address that it was given."""


class Following:
    """`readdress(link)` blocks: see `kernel.linux.child`; False if there is no such link. `on_host()`: the host's own are other ones."""

    def __init__(
        self,
        view: View,
        leases: Leases,
        ops: AgentOperations,
        health: Health,
        readdress: Callable[[ChildLink], bool],
        on_host: Callable[[], None] = lambda: None,
    ) -> None:
        self._view, self._leases, self._ops, self._health, self._readdress = view, leases, ops, health, readdress
        self._on_host = on_host

    async def recover(self) -> None:
        """Once at start: what became of leases while nobody could follow."""
        own = [e for e in self._view.snapshot.endpoints.values() if e.node == self._view.me and e.leased is not None]
        for endpoint in own:
            for owner in (endpoint.id, paired(endpoint.id)):
                if (lease := self._leases.of(owner)) is not None:
                    await self._follow(owner, lease)

    async def run(self) -> None:
        """Never returns."""
        while True:
            owner = await self._leases.changes.get()
            try:
                await self._follow(owner, self._leases.of(owner))
            except (PlaitError, OSError) as error:
                log.warning("lease_not_followed", extra={"endpoint": owner[:16], "error": str(error)})

    async def _follow(self, owner: str, lease: Lease | None) -> None:
        if owner.startswith(HOST):
            self._on_host()
            return
        owner, six = owner.removesuffix(paired("")), owner.endswith(paired(""))
        before = self._view.snapshot.endpoints.get(owner)
        network = self._view.snapshot.networks.get(before.network) if before is not None else None
        if before is None or network is None or not network.by_dhcp or leased_as(before, lease, six) == before:
            return
        netns = before.netns or netns_of_containers(self._view, {owner: before}).get(owner, "")
        if netns:  # first the address, then what says so: names are answered inside, to who asks from it
            await asyncio.to_thread(self._readdress, child_link(network, leased_as(before, lease, six), netns))
        after = await self._ops.amend(owner, lambda endpoint: leased_as(endpoint, lease, six))
        if after is not None:
            self._judge(after, before)

    def _judge(self, after: Endpoint, before: Endpoint) -> None:
        pairs = ((after.address, before.address), (after.address6, before.address6))
        now, shown = next((pair for pair in pairs if None not in pair and pair[0] != pair[1]), (None, None))
        if after.runtime in _TOLD and now is not None:
            text = f"{after.name} of network {after.network} has {now} now, but {after.runtime} shows {shown}"
            self._health.set(MOVED, after.id, text)


def leased_as(endpoint: Endpoint, lease: Lease | None, six: bool) -> Endpoint:
    """The endpoint with what it has by its lease, or (None) has lost with it; `six`: by that of IPv6."""
    if six:
        return replace(endpoint, address6=lease.address if lease is not None and isinstance(lease.address, IPv6Address) else None)
    if lease is None:
        return replace(endpoint, leased=replace(endpoint.leased, lost=True)) if endpoint.leased is not None else endpoint
    return replace(endpoint, address=lease.four, leased=lease.leased)
