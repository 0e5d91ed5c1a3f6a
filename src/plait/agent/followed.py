# SPDX-License-Identifier: Apache-2.0
"""Checks that follow the cluster instead of being run: aliases, and the health that an engine finds of its containers.

Data in: snapshots, whenever something changed. Data out: results of alias checks, and one check for each service of this node that was
registered for a container with a health check of its own (Docker's HEALTHCHECK). Those are made from the present state alone: they need no
journal, come with their container and go with it.
"""

from __future__ import annotations

import asyncio

from plait.agent.checkup import Checkup
from plait.agent.view import View
from plait.model.cluster import Container, Instance, Snapshot
from plait.model.discovery import Check, Status
from plait.services.health import alias_results

CONTAINER_CHECK = "container:"
"""Begins the id of a check that says how a container is; the service's id follows."""
_KINDS = frozenset({"checks", "instances", "containers", "nodes", "alive", "catalog/checks", "catalog/instances", "catalog/nodes"})
_STATUS: dict[str, Status] = {"healthy": "passing", "starting": "critical", "unhealthy": "critical"}
_PAUSE_S = 0.05
"""Between two rounds, so that a burst of changes costs one."""


class Followed:
    """`run` never returns."""

    def __init__(self, view: View, checkup: Checkup) -> None:
        self._view, self._checkup = view, checkup
        self._dirty = asyncio.Event()
        self._dirty.set()
        self._made: dict[str, Check] = {}
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & _KINDS:
            self._dirty.set()

    async def run(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self.once()
            await asyncio.sleep(_PAUSE_S)

    def once(self) -> None:
        """Bring all of them in line with the present snapshot."""
        snapshot = self._view.snapshot
        wanted = container_checks(snapshot)
        for check in [made for key, made in self._made.items() if key not in wanted]:
            self._view.drop(check)
        for check in wanted.values():
            self._view.put(check)
        self._made = wanted
        aliases = self._checkup.aliases()
        if aliases:
            results = alias_results(snapshot, set(aliases.values()))
            self._checkup.say({key: results[target] for key, target in aliases.items()})


def container_checks(snapshot: Snapshot) -> dict[str, Check]:
    """One for each service of this node whose running container has a health check, by id."""
    own = [i for i in snapshot.instances.values() if i.node == snapshot.me and i.container]
    if not own:
        return {}
    judged = {c.name: c for c in snapshot.containers.values() if c.node == snapshot.me and c.state == "running" and c.health}
    found = [_container_check(instance, judged[instance.container]) for instance in own if instance.container in judged]
    return {check.id: check for check in found}


def _container_check(instance: Instance, container: Container) -> Check:
    said = f": {container.health_output}" if container.health_output else ""
    return Check(
        id=f"{CONTAINER_CHECK}{instance.id}",
        node=instance.node,
        name=f"Container '{container.name}' health",
        status=_STATUS.get(container.health, "warning"),
        output=f"Container {container.name} is {container.health}{said}",
        service_id=instance.id,
        service_name=instance.name,
        service_tags=instance.tags,
    )
