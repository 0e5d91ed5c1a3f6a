# SPDX-License-Identifier: Apache-2.0
"""Writes the part of the catalogue that no agent owns. Implements `serve.consul_backend.Outside`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from plait.agent.keys import record_key
from plait.agent.view import View
from plait.model.cluster import Instance
from plait.model.discovery import CatalogNode, Check
from plait.store.api import Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.catalog")


class OutsideCatalog:
    """Straight into the store; answers once this node's own view has it."""

    def __init__(self, view: View, store: Store) -> None:
        self._view, self._store = view, store

    async def put(self, records: Sequence[CatalogNode | Instance | Check]) -> None:
        bodies = {record_key(record): encode(record) for record in records}
        ops = [Put(key, body) for key, body in bodies.items() if (item := self._view.item(key)) is None or item.value != body]
        await self._write(ops)
        for record in records:
            log.info("catalog_written", extra={"key": record_key(record)})

    async def drop(self, node: str, service_id: str = "", check_id: str = "") -> None:
        await self._write([Delete(key) for key in self._concerned(node, service_id, check_id)])
        log.info("catalog_removed", extra={"node": node, "id": service_id or check_id})

    def _concerned(self, node: str, service_id: str, check_id: str) -> list[str]:
        """Keys of the store."""
        checks = list(self._view.stored(f"catalog/checks/{node}/"))
        if service_id:
            found = [key for key in checks if isinstance(check := self._view.record(key), Check) and check.service_id == service_id]
            return [f"catalog/instances/{node}/{service_id}", *found]
        if check_id:
            return [f"catalog/checks/{node}/{check_id}"]
        return [f"catalog/nodes/{node}", *self._view.stored(f"catalog/instances/{node}/"), *checks]

    async def _write(self, ops: Sequence[Put | Delete]) -> None:
        if ops:
            result = await self._store.txn([], ops)
            await self._view.caught_up(result.revision)
