# SPDX-License-Identifier: Apache-2.0
"""Writes the part of the catalogue that no agent owns. Implements `serve.consul_backend.Outside`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence

from plait.agent.keys import kept_key, record_key, shown_from
from plait.agent.view import View
from plait.model.cluster import Instance, Snapshot
from plait.model.discovery import CatalogNode, Check, OtherTags
from plait.model.errors import StoreUnavailable
from plait.services.catalogrules import as_tags, ignored_fields, says_itself
from plait.services.txncatalog import Record
from plait.services.txndraft import Ref
from plait.store.api import Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.catalog")


class OutsideCatalog:
    """Straight into the store; answers once this node's own view has it. Implements `services.txncatalog.Catalogue` too."""

    def __init__(self, view: View, store: Store) -> None:
        self._view, self._store = view, store

    # --- what is there

    def snapshot(self) -> Snapshot:
        return self._view.snapshot

    def registered(self, node: str, service_id: str) -> Instance | None:
        """What the node's own agent registered, without tags that others gave it."""
        found = self._view.counting(shown_from(("service", node, service_id))[0])
        return found if isinstance(found, Instance) else None

    def kept(self, ref: Ref) -> Record | None:
        """What somebody else put there, whether readers see it or not."""
        found = self._view.record(kept_key(ref))
        return found if isinstance(found, CatalogNode | Instance | Check) else None

    def kept_checks(self, node: str, service_id: str) -> Iterable[str]:
        """Ids of the checks that somebody else put there for a service."""
        for key in self._view.stored(f"catalog/checks/{node}/"):
            check = self._view.record(key)
            if isinstance(check, Check) and check.service_id == service_id:
                yield check.id

    # --- writing

    async def put(self, records: Sequence[CatalogNode | Instance | Check]) -> None:
        """Of a service whose agent lets others choose its tags, only these are taken; of a node with an agent not whether it lives."""
        taken = [record for record in records if not self._is_sign_of_life(record)]
        written = [self._as_tags(record) or record if isinstance(record, Instance) else record for record in taken]
        bodies = {record_key(record): encode(record) for record in written}
        ops = [Put(key, body) for key, body in bodies.items() if (item := self._view.item(key)) is None or item.value != body]
        await self._write(ops)
        for record in written:
            log.info("catalog_written", extra={"key": record_key(record)})

    def _is_sign_of_life(self, record: CatalogNode | Instance | Check) -> bool:
        if not isinstance(record, Check) or not says_itself(record, self._view.snapshot):
            return False
        log_ignored(shown_from(("check", record.node, record.id))[0], ("status",))
        return True

    def _as_tags(self, record: Instance) -> OtherTags | None:
        """What the record comes to, None if it is to be kept as it is."""
        shown = self._view.snapshot.instances.get((record.node, record.id))
        registered = self.registered(record.node, record.id)
        tags = as_tags(record, registered, shown.create_index) if shown is not None else None
        if registered is not None and tags is not None and (fields := ignored_fields(record, registered)):
            log_ignored(record_key(registered), fields)
        return tags

    async def forget(self, service_id: str) -> None:
        """A service of this node is gone: so are the tags that others gave it. If the store is away, they are void all the same."""
        key = f"catalog/tags/{self._view.me}/{service_id}"
        if self._view.item(key) is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._store.txn([], [Delete(key)])

    async def drop(self, node: str, service_id: str = "", check_id: str = "") -> None:
        ref = ("service", node, service_id) if service_id else ("check", node, check_id) if check_id else ("node", node)
        checks = [Delete(kept_key(("check", node, name))) for name in self.kept_checks(node, service_id)] if service_id else []
        await self._write([*removal(ref), *checks])
        log_removed(ref)

    async def _write(self, ops: Sequence[Put | Delete]) -> None:
        if ops:
            result = await self._store.txn([], ops)
            await self._view.caught_up(result.revision)


def removal(ref: Ref) -> list[Put | Delete]:
    """What takes away what others put there; with a node goes all that they put on it."""
    if ref[0] == "node":
        return [Delete(kept_key(ref)), *(Delete(f"catalog/{kind}/{ref[1]}/", prefix=True) for kind in ("instances", "tags", "checks"))]
    return [Delete(key) for key in shown_from(ref)[1:]]


def log_ignored(key: str, fields: Sequence[str]) -> None:
    """Somebody meant to change more of what an agent says than it lets others change."""
    log.warning("catalog_ignored", extra={"key": key, "fields": ",".join(fields)})


def log_removed(ref: Ref) -> None:
    """What others put there was taken away."""
    log.info("catalog_removed", extra={"node": ref[1], "id": "".join(ref[2:])})
