# SPDX-License-Identifier: Apache-2.0
"""`plait egress`: by which hosts containers leave. Records in the store, and what is wrong with them on this host.

Data in: requests, the snapshot, this host's addresses. Data out: records below `egress/`, rows, conditions. It answers once what was said
is in force on this host; the others follow as their replicas do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

from plait.agent.health import Health
from plait.agent.kernelwork import PassReport
from plait.agent.keys import egress_key
from plait.agent.view import View
from plait.model.cluster import Snapshot
from plait.model.egress import Egress, check_egress_name
from plait.model.egressreport import EgressRow
from plait.model.errors import Conflict, NotFound, NotSupported
from plait.model.objects import Addr
from plait.plan.egress import chosen, seen_as, sources, ungated
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.egress")
EVERY_S = 1.0
LOST, NO_ADDRESS = "egress-lost", "egress-address"


class Egresses:
    """`full_pass` makes the kernel what the view says; `addresses` are this host's own, asked for in a thread."""

    def __init__(
        self,
        view: View,
        store: Store,
        health: Health,
        full_pass: Callable[[], Awaitable[PassReport]],
        addresses: Callable[[], list[Addr]],
    ) -> None:
        self._view, self._store, self._health, self._full_pass, self._addresses = view, store, health, full_pass, addresses

    async def put(self, wanted: Egress) -> EgressRow:
        """Make a rule, or another one in its place. ConfigError, NotFound, NotSupported, Conflict; KernelError if this host's kernel
        refuses it, which is tried again."""
        self._check(wanted)
        key = egress_key(wanted.name)
        item = self._view.item(key)
        result = await self._store.txn([Compare(key, item.mod_revision if item is not None else 0)], [Put(key, encode(wanted))])
        await self._view.caught_up(result.revision)
        if not result.ok:
            raise Conflict(f"egress rule {wanted.name!r} was changed at the same time; look at `plait egress ls` and try again")
        log.info("egress_set", extra={"egress": wanted.name, "network": wanted.network})
        await self._enforce()
        return row(self._view.snapshot, wanted)

    async def remove(self, name: str) -> None:
        """Its containers leave by their own hosts then. NotFound."""
        if name not in self._view.snapshot.egress:
            raise NotFound(f"there is no egress rule {name!r}; `plait egress ls` lists them")
        result = await self._store.txn([], [Delete(egress_key(name))])
        await self._view.caught_up(result.revision)
        log.info("egress_removed", extra={"egress": name})
        await self._enforce()

    def rows(self) -> list[EgressRow]:
        return [row(self._view.snapshot, egress) for _, egress in sorted(self._view.snapshot.egress.items())]

    async def run(self) -> None:
        """Raise and clear what is wrong. Never returns."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        snapshot = self._view.snapshot
        here = {addr.address.ip for addr in await asyncio.to_thread(self._addresses)} if snapshot.egress else set()
        lost: dict[str, str] = {}
        missing: dict[str, str] = {}
        for name, egress in snapshot.egress.items():
            shown = row(snapshot, egress)
            if ungated(snapshot.networks.get(egress.network)) or not shown["by"]:
                lost[name] = why_lost(snapshot, egress)
            elif shown["by"] == snapshot.me and shown["address"] not in map(str, here):
                missing[name] = f"what leaves by rule {name} is to have {shown['address']}, which no link of this host has"
        self._health.replace(LOST, lost)
        self._health.replace(NO_ADDRESS, missing)

    def _check(self, wanted: Egress) -> None:
        check_egress_name(wanted.name)
        snapshot = self._view.snapshot
        network = snapshot.networks.get(wanted.network)
        if network is None:
            raise NotFound(f"there is no network {wanted.network!r}; `plait network ls` lists them")
        if why := ungated(network):
            raise NotSupported(f"network {wanted.network!r} cannot have a gateway: {why}")
        for gateway in wanted.gateways:
            node = snapshot.nodes.get(gateway.node)
            if node is None:
                raise NotFound(f"there is no node {gateway.node!r}; `plait nodes` lists them")
            if gateway.address is None and not isinstance(node.address, IPv4Address):
                raise NotSupported(f"node {gateway.node!r} has no IPv4 address of its own: name one, {gateway.node}=ADDRESS")
        same = next((e.name for e in snapshot.egress.values() if e.number == wanted.number and e.name != wanted.name), None)
        if same is not None:
            raise Conflict(f"egress rules {wanted.name!r} and {same!r} would have the same number of table; choose another name")

    async def _enforce(self) -> None:
        report = await self._full_pass()
        for error in report.failed.values():
            raise error


def row(snapshot: Snapshot, egress: Egress) -> EgressRow:
    network = snapshot.networks.get(egress.network)
    by = chosen(snapshot, egress, network) if network is not None and not ungated(network) else ""
    return {
        "name": egress.name,
        "network": egress.network,
        "selector": dict(egress.selector),
        "gateways": list(map(str, egress.gateways)),
        "by": by,
        "address": str(seen_as(snapshot.nodes[by], egress)) if by else "",
        "containers": len(sources(snapshot, egress)),
    }


def why_lost(snapshot: Snapshot, egress: Egress) -> str:
    why = (
        ungated(snapshot.networks.get(egress.network)) or f"neither {' nor '.join(gateway.node for gateway in egress.gateways)} is reached"
    )
    return f"containers of rule {egress.name} on network {egress.network} do not get out: {why}"
