# SPDX-License-Identifier: Apache-2.0
"""Services that containers name themselves are registered as long as these run.

Data in: the own containers of every runtime. Data out: their instances in the view, from where they are published, and their checks. An
instance that is gone with its container is dropped in the very call that reports the container; a new one appears after its checks, which
so is never passing without them. Nothing of it is journalled but what a client took away: it is made anew from what runs. Until a runtime
has reported for the first time, what the store says of it stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

from plait.agent.checkup import Checkup
from plait.agent.health import Health
from plait.agent.journal import Journal, Write
from plait.agent.keys import record_key
from plait.agent.view import View
from plait.model.cluster import Container, Instance
from plait.model.errors import PlaitError
from plait.services.registrator import ALIVE, Registration, Where, Which, registrations

log = logging.getLogger("plait.catalog")
_REFUSED = "service-refused"
_KIND = "dismissed"
"""Journal: id of an instance -> the run of the container of which it was deregistered."""


class AutoRegister:
    """Not thread-safe. `host` is this node's address as long as its record says no other; `run` never returns."""

    def __init__(self, view: View, journal: Journal, health: Health, host: str, which: Which, where: Where) -> None:
        self._view, self._journal, self._health = view, journal, health
        self._host, self._which, self._where = host, which, where
        self._dismissed = {key: body.decode() for key, body in journal.load(_KIND).items()}
        self._wanted: dict[str, Registration] = {}
        self._made: dict[str, Instance] = {}
        self._awaiting: set[str] = set()
        self._gone: set[str] = set()
        """Ids of what was dropped, whose checks by clients are still there."""
        self._refused: dict[str, str] = {}
        self._dirty = asyncio.Event()
        view.subscribe(self._on_view)

    async def dismiss(self, instance: Instance) -> None:
        """A client deregistered it: it stays away until its container is started again. Durable when it returns."""
        container = next((c for c in self._own_containers() if c.name == instance.container), None)
        if container is not None:
            self._dismissed[instance.id] = _run_of(container)
            await self._journal.write([Write(_KIND, instance.id, _run_of(container).encode())])
        self._sync()

    async def run(self, checkup: Checkup) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._settle(checkup)

    # --- at once, with the report

    def _on_view(self, kinds: frozenset[str]) -> None:
        me = self._view.snapshot.nodes.get(self._view.me) if "nodes" in kinds else None
        moved = me is not None and str(me.address) != self._host
        if me is not None and moved:
            self._host = str(me.address)
        if "containers" in kinds or moved:
            self._sync()

    def _own_containers(self) -> list[Container]:
        found = (c for c in self._view.snapshot.containers.values() if c.node == self._view.me and self._view.reported(c.runtime))
        return sorted(found, key=lambda container: (container.runtime, container.name))

    def _sync(self) -> None:
        """Drop what has no container any more and bring in line what is there; what is new waits for its checks."""
        containers = self._own_containers()
        self._awaiting = {c.name for c in containers if not c.known and c.state in ALIVE}
        self._forget_dismissals(containers)
        self._wanted = self._registrations(containers)
        for instance in [i for i in self._made.values() if i.id not in self._wanted and i.container not in self._awaiting]:
            self._drop(instance)
        for registration in self._wanted.values():
            if self._is_there(registration.instance):
                self._put(registration.instance)
        for record in self._stored(self._awaiting):
            self._put(record)
        self._dirty.set()

    def _registrations(self, containers: Iterable[Container]) -> dict[str, Registration]:
        wanted: dict[str, Registration] = {}
        self._refused = {}
        for container in containers:
            if not container.known:
                continue
            made, problems = registrations(container, self._host, self._which, self._where)
            for one in made:
                if one.instance.id in wanted:
                    problems.append(f"its id {one.instance.id!r} is that of a service of {wanted[one.instance.id].instance.container}")
                elif not self._is_clients(one.instance) and self._dismissed.get(one.instance.id) != _run_of(container):
                    wanted[one.instance.id] = one
            if problems:
                self._refused[container.name] = "; ".join(problems)
        self._health.replace(_REFUSED, self._refused)
        return wanted

    def _is_clients(self, instance: Instance) -> bool:
        """Whether a client registered a service under this id, which counts more."""
        own = self._view.own(record_key(instance))
        return isinstance(own, Instance) and not own.runtime

    def _is_there(self, instance: Instance) -> bool:
        stored = self._view.record(record_key(instance))
        return instance.id in self._made or (isinstance(stored, Instance) and bool(stored.runtime) and not self._is_clients(instance))

    def _stored(self, containers: set[str]) -> list[Instance]:
        """What was published of these containers before the agent was started, and is not made yet."""
        if not containers:
            return []
        records = [self._view.record(key) for key in self._view.stored(f"instances/{self._view.me}/")]
        found = [r for r in records if isinstance(r, Instance) and r.runtime and r.container in containers and r.id not in self._made]
        return [replace(r, create_index=0, modify_index=0) for r in found if not self._is_clients(r)]

    def _put(self, instance: Instance) -> None:
        if self._made.get(instance.id) == instance:
            return
        if instance.id not in self._made:
            log.info("service_registered", extra={"service": instance.name, "id": instance.id, "address": instance.address})
        self._made[instance.id] = instance
        self._view.put(instance)

    def _drop(self, instance: Instance) -> None:
        del self._made[instance.id]
        if not self._is_clients(instance):
            self._gone.add(instance.id)
            self._view.drop(instance)
            log.info("service_deregistered", extra={"service": instance.name, "id": instance.id})

    def _forget_dismissals(self, containers: Iterable[Container]) -> None:
        """Of runs that are over, as far as their runtime has said what runs."""
        runs = {_run_of(container) for container in containers if container.state in ALIVE}
        if self._awaiting or not self._dismissed:
            return
        reported = {key: run for key, run in self._dismissed.items() if self._view.reported(run.partition("/")[0])}
        over = [key for key, run in reported.items() if run not in runs]
        for key in over:
            del self._dismissed[key]
        if over:
            self._journal.queue([Write(_KIND, key, None) for key in over])

    # --- with the checks

    async def _settle(self, checkup: Checkup) -> None:
        """Checks in line with what is wanted, then the new instances."""
        kept = {check.id for registration in self._wanted.values() for check in registration.checks}
        waiting = {instance.id for instance in self._made.values() if instance.container in self._awaiting}
        known = {check.id: check for check in checkup.automatic() if self._view.reported(check.runtime)}
        await checkup.remove([key for key, check in known.items() if key not in kept and check.service_id not in waiting])
        await self._forget_checks(checkup)
        for key, registration in list(self._wanted.items()):
            fresh = [c for c in registration.checks if c.id not in known or known[c.id].definition != c.definition]
            try:
                await checkup.add(fresh, remote=False)
            except PlaitError as error:
                self._refused[registration.instance.container] = str(error)
                self._health.replace(_REFUSED, self._refused)
                continue
            if self._wanted.get(key) is registration:
                self._put(registration.instance)

    async def _forget_checks(self, checkup: Checkup) -> None:
        """Those that clients added to what has gone; a client's own service of that id keeps its checks."""
        while self._gone:
            service_id = self._gone.pop()
            async with checkup.changing(service_id):
                if self._view.snapshot.instances.get((self._view.me, service_id)) is None:
                    await checkup.remove([check.id for check in checkup.of_service(service_id) if not check.runtime])


def _run_of(container: Container) -> str:
    """One run of a container, from its start to its end."""
    return f"{container.runtime}/{container.id}/{container.started}"
