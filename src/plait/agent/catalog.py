# SPDX-License-Identifier: Apache-2.0
"""This node's service instances: journalled, published, and bound to their containers. Implements `serve.consul.CatalogBackend`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from plait.agent.journal import Journal, Write
from plait.agent.view import View
from plait.model.cluster import Instance, Snapshot
from plait.model.errors import StoreUnavailable
from plait.services.views import at_container, container_address
from plait.store.codec import decode, encode

log = logging.getLogger("plait.catalog")
_PUBLISH_S = 2.0
"""How long a registration waits for the store to take it; afterwards it is answered all the same, being durable here."""


class Catalog:
    def __init__(
        self,
        view: View,
        journal: Journal,
        publish: Callable[[], Awaitable[object]],
        contact_ms: Callable[[], int | None],
        dismiss: Callable[[Instance], Awaitable[None]] | None = None,
        forgotten: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """`dismiss` is told of the services that are taken away although their containers name them; `forgotten` of the id of each that is
        deregistered."""
        self._view, self._journal, self._publish, self._contact_ms = view, journal, publish, contact_ms
        self._dismiss, self._forgotten = dismiss, forgotten
        self._waiters: set[asyncio.Event] = set()
        for key, body in journal.load("instance").items():
            view.put(decode(Instance, body, key))
        view.subscribe(self._on_change)

    def snapshot(self) -> Snapshot:
        return self._view.snapshot

    def last_contact_ms(self) -> int | None:
        return self._contact_ms()

    async def register(self, instance: Instance) -> Instance:
        await self._journal.write([Write("instance", instance.id, encode(instance))])
        self._view.put(instance)
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_PUBLISH_S):
                await self._publish()
        log.info("service_registered", extra={"service": instance.name, "id": instance.id, "address": instance.address})
        return self._view.snapshot.instances[self._view.me, instance.id]

    async def deregister(self, service_id: str) -> bool:
        known = self._view.snapshot.instances.get((self._view.me, service_id))
        if known is None:
            return False
        if known.runtime and self._dismiss is not None:
            await self._dismiss(known)
        else:
            await self._forget(known)
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_PUBLISH_S):
                await self._publish()
        if self._forgotten is not None:
            await self._forgotten(service_id)
        log.info("service_deregistered", extra={"service": known.name, "id": service_id})
        return True

    async def _forget(self, known: Instance) -> None:
        self._view.drop(known)
        try:
            await self._journal.write([Write("instance", known.id, None)])
        except BaseException:
            self._view.put(known)
            raise

    async def changed(self, timeout_s: float) -> None:
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(event)

    def _on_change(self, kinds: frozenset[str]) -> None:
        if kinds & {"containers", "endpoints"}:
            self._follow_containers()
        for event in self._waiters:
            event.set()

    def _follow_containers(self) -> None:
        """Instances that were registered for a container have its present address, and are down while it does not run. One that was
        registered without an address before its container was known is bound to it now."""
        snapshot = self._view.snapshot
        for own in list(self._view.own_records().values()):
            if not isinstance(own, Instance) or own.runtime or (own.address and not own.container):
                continue
            address = container_address(snapshot, own.container or own.name, self._view.me)
            if not own.container and not address:
                continue
            bound = replace(own, down=not address, container=own.container or own.name)
            fresh = at_container(snapshot, bound, address) if address else bound
            if fresh == own:
                continue
            log.info("service_followed", extra={"service": own.name, "id": own.id, "address": fresh.address, "down": fresh.down})
            if not own.container:
                self._journal.queue([Write("instance", own.id, encode(fresh))])
            self._view.put(fresh)
