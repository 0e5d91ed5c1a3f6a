# SPDX-License-Identifier: Apache-2.0
"""Brings this node's Docker endpoints in line with what the engine really has.

Data in: a full list of containers, what is known of their inspections, the engine's networks with their endpoints. Data out: `detach` of
endpoints that no container and no network of the engine knows (`docker rm` while the agent was down), `release` of addresses that were
asked for and never used, `attach` again of endpoints whose container could not be named when it joined, was renamed since, or has aliases
(only its inspection tells them). Conservative: only after complete answers, never for an endpoint or address that is younger than the
grace period.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from plait.model.cluster import Endpoint
from plait.model.errors import NotFound, PlaitError
from plait.runtimes.api import AttachRequest, Operations
from plait.runtimes.docker.containers import RUNTIME
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.ipam import OWNER
from plait.runtimes.docker.networks import AUX_OWNER, DRIVER

log = logging.getLogger("plait.docker")
GRACE_S = 30.0


class Collector:
    """`endpoint_age` and `owner_age`: seconds since the plug-in was last asked about one (infinite: not since the agent started)."""

    def __init__(
        self,
        ops: Operations,
        engine: DockerEngine,
        endpoint_age: Callable[[str], float],
        owner_age: Callable[[str], float],
        grace_s: float = GRACE_S,
    ) -> None:
        self._ops, self._engine, self._grace_s = ops, engine, grace_s
        self._endpoint_age, self._owner_age = endpoint_age, owner_age

    async def collect(self, rows: Sequence[ContainerRow], details: Mapping[str, ContainerDetails]) -> None:
        """One pass over a full list that was just received; `details` by container id. EngineUnavailable if the engine went away."""
        owners = {s.endpoint_id: row for row in rows for s in row.networks.values() if s.endpoint_id}
        for endpoint in list(self._ops.endpoints(RUNTIME).values()):
            row = owners.get(endpoint.id)
            if row is not None:
                await self._describe(endpoint, row, details.get(row.id))
        await self._remove(set(owners))

    async def _describe(self, endpoint: Endpoint, row: ContainerRow, details: ContainerDetails | None) -> None:
        """Give an endpoint the name, id, labels and aliases of its container, if it has others."""
        labels, aliases = dict(row.labels or {}), _aliases(endpoint, row, details)
        known = (endpoint.name, endpoint.container, dict(endpoint.labels), endpoint.aliases)
        if known == (row.name, row.id, labels, aliases) or not row.name:
            return
        request = AttachRequest(
            endpoint=endpoint.id,
            network=endpoint.network,
            runtime=RUNTIME,
            container=row.id,
            name=row.name,
            address=endpoint.address,
            mac=endpoint.mac,
            aliases=aliases,
            labels=labels,
        )
        try:
            await self._ops.attach(request)
        except PlaitError as error:
            log.warning("endpoint_not_described", extra={"endpoint": endpoint.id[:16], "error": str(error)})

    async def _remove(self, present: set[str]) -> None:
        doubtful = [e for e in self._ops.endpoints(RUNTIME).values() if e.id not in present and self._endpoint_age(e.id) > self._grace_s]
        stale = [key for key, owner in self._ops.held(OWNER).items() if self._is_stale(owner)]
        if not doubtful and not stale:
            return
        confirmed = await self._in_networks()
        for endpoint in doubtful:
            if endpoint.id not in confirmed and self._endpoint_age(endpoint.id) > self._grace_s:
                await self._ops.detach(endpoint.id)
                log.info("endpoint_orphaned", extra={"endpoint": endpoint.id[:16], "network": endpoint.network, "container": endpoint.name})
        used = {(e.network, e.address) for e in self._ops.endpoints(RUNTIME).values()}
        for network, address in stale:
            if (network, address) not in used and str(address) not in confirmed:
                await self._ops.release(network, address)
                log.info("address_orphaned", extra={"network": network, "address": str(address)})

    def _is_stale(self, owner: str) -> bool:
        return not owner.startswith(AUX_OWNER) and self._owner_age(owner) > self._grace_s

    async def _in_networks(self) -> set[str]:
        """Endpoint ids and addresses that the engine's networks list: more than its containers while one is starting."""
        found: set[str] = set()
        for network in await self._engine.networks():
            if network.driver == DRIVER:
                try:
                    attached = (await self._engine.network(network.id)).containers or {}
                except NotFound:
                    continue
                found |= {a.endpoint_id for a in attached.values()} | {a.address.partition("/")[0] for a in attached.values()}
        return found


def _aliases(endpoint: Endpoint, row: ContainerRow, details: ContainerDetails | None) -> tuple[str, ...]:
    """The aliases that somebody gave the container in the endpoint's network (`--network-alias`, a service of compose), sorted. What is
    known already while the inspection is not; the engine's own alias, the short id, is left out."""
    for settings in details.networks.values() if details is not None else ():
        if settings.endpoint_id == endpoint.id:
            return tuple(sorted({*(settings.aliases or [])} - {row.name, row.id[:12]}))
    return endpoint.aliases
