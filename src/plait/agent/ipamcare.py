# SPDX-License-Identifier: Apache-2.0
"""`plait ipam check` and `plait ipam reclaim`: what differs between records, journal and kernel, and what of it is dead beyond doubt.

Reclaiming is safe to repeat and on several nodes at once: what is removed from the store is removed only as it was seen, and only while the
node that it belonged to neither exists nor gives a sign of life; of what runs on a node only that node itself lets go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from plait.agent.addressing import Addressing
from plait.agent.kernelwork import KernelWork
from plait.agent.keys import alive_key, node_key
from plait.agent.operations import AgentOperations
from plait.agent.view import View
from plait.ipam.check import Finding, Local, findings, lasting
from plait.model.cluster import Assigned, Block, Endpoint, HostRanges
from plait.model.hostlinks import ChildLink
from plait.model.objects import EndpointLink, Plan, Route
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.addresses")
APART_S = 1.0
"""Between the two looks of a check."""


class IpamCare:
    """`plan()` is this node's desired state; `exists(path)` whether a network namespace is there."""

    def __init__(
        self,
        view: View,
        store: Store,
        ops: AgentOperations,
        addresses: Addressing,
        work: KernelWork,
        plan: Callable[[], Plan],
        exists: Callable[[Path], bool],
    ) -> None:
        self._view, self._store, self._ops, self._addresses = view, store, ops, addresses
        self._work, self._plan, self._exists = work, plan, exists

    async def check(self) -> list[Finding]:
        """Differences that last for a moment."""
        first = await self._look()
        await asyncio.sleep(APART_S)
        return lasting(first, await self._look())

    async def _look(self) -> list[Finding]:
        missing = await self._missing()
        return findings(self._view.snapshot, Local(tuple(self._addresses.reservations()), missing))

    async def _missing(self) -> dict[str, str]:
        """What the kernel lacks, by endpoint of this node."""
        ops = await self._work.rehearse(self._plan)
        wanted = [op.new for op in ops if op.verb == "put" and isinstance(op.new, EndpointLink | ChildLink | Route)]
        devices = {obj.dev if isinstance(obj, Route) else obj.name: type(obj).__name__ for obj in wanted}
        own = (e for e in self._view.snapshot.endpoints.values() if e.node == self._view.me)
        return {e.id: f"the kernel lacks its {devices[e.dev]} {e.dev}" for e in own if e.dev in devices}

    async def reclaim(self, apply: bool) -> list[str]:
        """What is dead, one line each; freed if `apply`."""
        done = [await self._record(key, record, apply) for key, record in self._orphans()]
        idle = [r for r in self._ops.idle() if not apply or await self._ops.release_idle(r)]
        done += [f"address {r.address} of network {r.network}: held for {r.name or r.owner}, but nothing uses it" for r in idle]
        for endpoint in await self._dead_endpoints():
            done.append(f"endpoint of {endpoint.name or endpoint.id} ({endpoint.address}): container and network namespace are gone")
            if apply:
                await self._ops.detach(endpoint.id)
        return [line for line in done if line]

    def _orphans(self) -> list[tuple[str, Block | Endpoint | Assigned | HostRanges]]:
        """Stored records of nodes that do not exist."""
        snapshot, found = self._view.snapshot, []
        for prefix in ("blocks/", "endpoints/", "assigned/", "hostranges/"):
            for key in sorted(self._view.stored(prefix)):
                record = self._view.record(key)
                if not isinstance(record, Block | Endpoint | Assigned | HostRanges):
                    continue
                if record.node and record.node not in snapshot.nodes and record.node not in snapshot.alive:
                    found.append((key, record))
        return found

    async def _record(self, key: str, record: Block | Endpoint | Assigned | HostRanges, apply: bool) -> str:
        item = self._view.item(key)
        if item is None:
            return ""
        op: Put | Delete = Delete(key)
        if isinstance(record, Assigned) and record.name:
            op = Put(key, encode(Assigned(record.network, record.address, record.name)))
        if apply:
            gone = [Compare(node_key(record.node), 0), Compare(alive_key(record.node), 0)]
            result = await self._store.txn([Compare(key, item.mod_revision), *gone], [op])
            await self._view.caught_up(result.revision)
            if not result.ok:
                return ""
            log.info("record_reclaimed", extra={"key": key, "node": record.node})
        return f"{key}: node {record.node} does not exist"

    async def _dead_endpoints(self) -> list[Endpoint]:
        """Endpoints of this node whose runtime does not know the container and whose namespace, or link, is gone."""
        missing = await self._missing()
        containers = {(c.runtime, c.id) for c in self._view.snapshot.containers.values() if c.node == self._view.me}
        own = [e for e in self._view.snapshot.endpoints.values() if e.node == self._view.me and self._view.reported(e.runtime)]
        unknown = [e for e in own if e.container and (e.runtime, e.container) not in containers]
        return [e for e in unknown if (not self._exists(Path(e.netns)) if e.netns else e.id in missing)]
