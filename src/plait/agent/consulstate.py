# SPDX-License-Identifier: Apache-2.0
"""What of Consul's cluster-wide state is neither services nor keys: user events, the archive of everything, a few settings.

Implements `serve.consul_event.EventBackend` and `serve.consul_operator.OperatorBackend`. Store keys:
`events/<id>`, `settings/autopilot`, `coordinates/<node>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator

from plait.agent.documents import Documents
from plait.agent.view import View
from plait.model.cluster import Snapshot
from plait.model.kv import Coordinate, UserEvent
from plait.services.archive import ARCHIVED, Archive, pack, unpack
from plait.store.api import Change, Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.consulstate")
KINDS = frozenset({"events", "settings", "coordinates"})
MAX_EVENTS = 256
_BATCH = 512
_BATCH_BYTES = 1 << 20
_AUTOPILOT = "settings/autopilot"


class ConsulState:
    def __init__(self, view: View, store: Store, contact_ms: Callable[[], int | None]) -> None:
        self._view, self._store, self._contact_ms = view, store, contact_ms
        self.events = Documents("events", UserEvent)
        self.coordinates = Documents("coordinates", Coordinate)
        self._autopilot: tuple[dict[str, object], int] = ({}, 0)

    def change(self, changes: Iterable[Change]) -> None:
        told = list(changes)
        self.events.change(told)
        self.coordinates.change(told)
        for change in told:
            if change.item.key == _AUTOPILOT:
                put = change.kind == "put"
                self._autopilot = (json.loads(change.item.value), change.item.mod_revision) if put else ({}, 0)

    def start_at(self, revision: int) -> None:
        """Not every change up to this revision was seen."""
        for documents in (self.events, self.coordinates):
            documents.start_at(revision)

    def last_contact_ms(self) -> int | None:
        return self._contact_ms()

    def snapshot(self) -> Snapshot:
        return self._view.snapshot

    # --- coordinates

    def coordinate(self, node: str) -> tuple[Coordinate, int]:
        return self.coordinates.get(node) or (Coordinate(node), self.coordinates.index_of(node))

    def coordinates_index(self) -> int:
        """That of a query for all of them."""
        return self.coordinates.index

    async def set_coordinate(self, coordinate: Coordinate) -> None:
        await self._commit([], [Put(f"coordinates/{coordinate.node}", encode(coordinate))])

    async def coordinates_changed(self, timeout_s: float) -> None:
        with self.coordinates.waiting() as event, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()

    # --- events

    async def fire(self, event: UserEvent) -> None:
        """Durable and seen on this node when it returns; the oldest beyond the last 256 go. StoreUnavailable."""
        surplus = self.events.items()[: -(MAX_EVENTS - 1)]
        ops: list[Put | Delete] = [Put(f"events/{event.id}", encode(event)), *(Delete(f"events/{name}") for name, _, _ in surplus)]
        await self._commit([], ops)

    # --- settings

    def autopilot(self) -> tuple[dict[str, object], int]:
        """What was set, and the revision at which it was (0: never)."""
        return self._autopilot

    async def set_autopilot(self, settings: dict[str, object], cas: int | None) -> bool:
        """False if `cas` is not the present revision. StoreUnavailable."""
        conditions = [] if cas is None else [Compare(_AUTOPILOT, cas)]
        return await self._commit(conditions, [Put(_AUTOPILOT, json.dumps(settings).encode())])

    # --- the archive

    async def archive(self) -> tuple[bytes, int]:
        """Everything that clients wrote, compressed, and the revision that it is of. StoreUnavailable."""
        listings = [await self._store.list(prefix) for prefix in ARCHIVED]
        items = tuple((item.key, item.value) for listing in listings for item in listing.items if not item.lease)
        index = min(listing.revision for listing in listings)
        return pack(Archive(index, items)), index

    async def restore(self, archive: bytes) -> None:
        """Replace what clients wrote by what `archive` holds. ConfigError if it is none of ours, then nothing has changed;
        StoreUnavailable.

        An archive of more than a megabyte is written in several transactions: a reader may meet it half restored."""
        items = [Put(key, value) for key, value in unpack(archive).items]
        first: list[Put | Delete] = [Delete(prefix, prefix=True) for prefix in ARCHIVED]
        for batch in _batches(first, items):
            await self._commit([], batch)
        log.info("snapshot_restored", extra={"items": len(items)})

    async def _commit(self, conditions: list[Compare], ops: list[Put | Delete]) -> bool:
        result = await self._store.txn(conditions, ops)
        await self._view.caught_up(result.revision)
        return result.ok


def _batches(first: list[Put | Delete], items: Iterable[Put]) -> Iterator[list[Put | Delete]]:
    batch, size = list(first), 0
    for item in items:
        if len(batch) >= _BATCH or size + len(item.value) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.value)
    yield batch
