# SPDX-License-Identifier: Apache-2.0
"""Writes the part of the catalogue that no agent owns. Implements `serve.consul_backend.Outside`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from plait.agent.keys import record_key
from plait.agent.view import View
from plait.model.cluster import Instance
from plait.model.discovery import CatalogNode, Check, OtherTags
from plait.model.errors import StoreUnavailable
from plait.store.api import Delete, Put, Store
from plait.store.codec import encode

_COMPARED = ("name", "address", "port", "ports", "meta", "tagged_addresses", "weight_passing", "weight_warning")
"""Fields of a service that others may mean to change besides its tags."""
_NOTHING = Instance("", "", "")
log = logging.getLogger("plait.catalog")


class OutsideCatalog:
    """Straight into the store; answers once this node's own view has it."""

    def __init__(self, view: View, store: Store) -> None:
        self._view, self._store = view, store

    async def put(self, records: Sequence[CatalogNode | Instance | Check]) -> None:
        """Of a service whose agent lets others choose its tags, only these are taken."""
        written = [self._as_tags(record) or record if isinstance(record, Instance) else record for record in records]
        bodies = {record_key(record): encode(record) for record in written}
        ops = [Put(key, body) for key, body in bodies.items() if (item := self._view.item(key)) is None or item.value != body]
        await self._write(ops)
        for record in written:
            log.info("catalog_written", extra={"key": record_key(record)})

    def _as_tags(self, record: Instance) -> OtherTags | None:
        """What the record comes to, None if it is to be kept as it is."""
        key = record_key(replace(record, origin="agent"))
        registered = self._view.own(key) or self._view.record(key)
        shown = self._view.snapshot.instances.get((record.node, record.id))
        if shown is None or not isinstance(registered, Instance) or not registered.enable_tag_override:
            return None
        ignored = [name for name in _COMPARED if getattr(record, name) not in (getattr(registered, name), getattr(_NOTHING, name))]
        if ignored:
            log.warning("catalog_ignored", extra={"key": key, "fields": ",".join(ignored)})
        return OtherTags(record.id, record.node, record.tags, registered.tags, shown.create_index)

    async def forget(self, service_id: str) -> None:
        """A service of this node is gone: so are the tags that others gave it. If the store is away, they are void all the same."""
        key = f"catalog/tags/{self._view.me}/{service_id}"
        if self._view.item(key) is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._store.txn([], [Delete(key)])

    async def drop(self, node: str, service_id: str = "", check_id: str = "") -> None:
        await self._write([Delete(key) for key in self._concerned(node, service_id, check_id)])
        log.info("catalog_removed", extra={"node": node, "id": service_id or check_id})

    def _concerned(self, node: str, service_id: str, check_id: str) -> list[str]:
        """Keys of the store."""
        checks = list(self._view.stored(f"catalog/checks/{node}/"))
        if service_id:
            found = [key for key in checks if isinstance(check := self._view.record(key), Check) and check.service_id == service_id]
            return [f"catalog/instances/{node}/{service_id}", f"catalog/tags/{node}/{service_id}", *found]
        if check_id:
            return [f"catalog/checks/{node}/{check_id}"]
        others = [key for kind in ("instances", "tags") for key in self._view.stored(f"catalog/{kind}/{node}/")]
        return [f"catalog/nodes/{node}", *others, *checks]

    async def _write(self, ops: Sequence[Put | Delete]) -> None:
        if ops:
            result = await self._store.txn([], ops)
            await self._view.caught_up(result.revision)
