# SPDX-License-Identifier: Apache-2.0
"""A full copy of the store in this process, kept by list and watch, with a last good copy on disk.

Data in: a Store. Data out: every item at one revision, and each batch of changes to whoever subscribed. While the store is away the copy
stays as it is; after any loss of the watch (connection, compaction, a restart of the server, also one with lost data) everything is listed
again and the difference is told as changes. The disk copy lets a node that starts without its store know the cluster as it last was.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType

import msgspec

from plait.model.errors import Compacted, StoreUnavailable
from plait.store.api import Change, Item, Listing, Store
from plait.store.files import write_file

log = logging.getLogger("plait.store")

FORMAT = 1
RETRY = (0.1, 1.0)
"""Seconds between attempts to list while the store is away: the first pause, doubled each time, and the longest."""
SAVE_DELAY = 2.0
"""Seconds after a change until the disk copy is written; changes in between go with it."""

OnChanges = Callable[[tuple[Change, ...], int], None]
"""Called with changes that are in force already, and the replica's revision after them."""
OnLink = Callable[[bool], None]
"""Called with True after each full listing (when the copy is whole and current), with False when the store is lost."""


class _Saved(msgspec.Struct, array_like=True):
    format: int
    revision: int
    items: list[tuple[str, bytes, int, int, int]]


class Replica:
    """Make it, `load` the disk copy, subscribe, then have `run` run until cancelled. All from one event loop."""

    def __init__(
        self, store: Store, path: Path, *, jitter: Callable[[float, float], float] = random.uniform, save_delay: float = SAVE_DELAY
    ) -> None:
        self._store, self._path, self._jitter, self._save_delay = store, path, jitter, save_delay
        self._items: dict[str, Item] = {}
        self._order: tuple[str, ...] | None = None
        self._on_changes: list[OnChanges] = []
        self._on_link: list[OnLink] = []
        self._dirty = asyncio.Event()
        self._disk = threading.Lock()
        self._encodings = self._written = 0
        self.items: Mapping[str, Item] = MappingProxyType(self._items)
        """Every item by key, live."""
        self.revision = 0
        """Revision of the store that the copy is of; 0 if nothing was ever seen."""
        self.connected = False
        """Whether the copy follows the store now."""
        self.synced = False
        """Whether there was a full listing since the start: before, nothing may be deleted because it is absent here."""

    # --- reading

    def list(self, prefix: str) -> Listing:
        """Items below `prefix` in byte order of key, as the store would list them."""
        if self._order is None:
            self._order = tuple(sorted(self._items))
        return Listing(tuple(self._below(self._order, prefix)), self.revision)

    def _below(self, order: tuple[str, ...], prefix: str) -> Iterator[Item]:
        for at in range(bisect_left(order, prefix), len(order)):
            if not order[at].startswith(prefix):
                return
            yield self._items[order[at]]

    def subscribe(self, on_changes: OnChanges | None = None, on_link: OnLink | None = None) -> None:
        """Have these called from now on, in order of subscription, from `run`. They must not block."""
        if on_changes is not None:
            self._on_changes.append(on_changes)
        if on_link is not None:
            self._on_link.append(on_link)

    # --- following the store

    async def run(self) -> None:
        """Follow the store until cancelled, then write the disk copy if it is behind."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._keep_saved())
        finally:
            self._link(False)
            if self._dirty.is_set():
                self._write(*self._encoded())

    async def _follow(self) -> None:
        pause = RETRY[0]
        while True:
            try:
                listing = await self._store.list("")
                pause = RETRY[0]
                self._replace(listing)
                await self._watch()
            except Compacted as why:
                log.info("replica_compacted", extra={"revision": self.revision, "error": str(why)})
            except StoreUnavailable as why:
                if self.connected:
                    log.warning("store_lost", extra={"revision": self.revision, "error": str(why)})
                self._link(False)
            await asyncio.sleep(pause * self._jitter(0.5, 1.0))
            pause = min(2 * pause, RETRY[1])

    async def _watch(self) -> None:
        async with aclosing(self._store.watch("", self.revision)) as batches:  # type: ignore[type-var]
            async for changes in batches:
                self._apply(changes, changes[-1].revision)

    def _replace(self, listing: Listing) -> None:
        """Become the listing; tell the difference as changes of its revision, deletions first."""
        fresh = {item.key: item for item in listing.items}
        gone = [Change("delete", item, listing.revision) for key, item in self._items.items() if key not in fresh]
        new = [Change("put", item, item.mod_revision) for key, item in fresh.items() if self._items.get(key) != item]
        first = not self.synced
        self.synced = True
        if gone or new or self.revision != listing.revision:
            self._apply((*gone, *new), listing.revision)
        if first or not self.connected:
            log.info("store_followed", extra={"revision": self.revision, "items": len(self._items)})
        self._link(True)

    def _apply(self, changes: tuple[Change, ...], revision: int) -> None:
        for change in changes:
            key = change.item.key
            if change.kind == "put":
                if key not in self._items:
                    self._order = None
                self._items[key] = change.item
            elif self._items.pop(key, None) is not None:
                self._order = None
        self.revision = revision
        self._dirty.set()
        for told in self._on_changes:
            told(changes, revision)

    def _link(self, connected: bool) -> None:
        if connected or self.connected:
            self.connected = connected
            for told in self._on_link:
                told(connected)

    # --- the disk copy

    def load(self) -> bool:
        """Take over the disk copy, if there is a good one; False if not. Call before `run`; subscribers are not told."""
        try:
            saved = msgspec.msgpack.decode(self._path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError) as error:
            log.warning("replica_unreadable", extra={"path": str(self._path), "error": str(error)})
            return False
        if saved.format != FORMAT:
            return False
        self._items.update((item[0], Item(*item)) for item in saved.items)
        self._order = None
        self.revision = saved.revision
        return True

    async def _keep_saved(self) -> None:
        delay = 0.0  # the first copy at once: a crash right after joining must not leave the node without any
        while True:
            await self._dirty.wait()
            await asyncio.sleep(delay)
            delay = self._save_delay
            self._dirty.clear()
            if not await asyncio.to_thread(self._write, *self._encoded()):
                self._dirty.set()

    def _encoded(self) -> tuple[int, bytes]:
        """The number of this encoding and the content of the disk copy."""
        rows = [(item.key, item.value, item.create_revision, item.mod_revision, item.lease) for item in self._items.values()]
        self._encodings += 1
        return self._encodings, msgspec.msgpack.encode(_Saved(FORMAT, self.revision, rows))

    def _write(self, number: int, content: bytes) -> bool:
        """Write the disk copy unless a newer one is there; False if the disk refuses, which stops nothing else."""
        try:
            with self._disk:
                if number > self._written:
                    write_file(self._path, content)
                    self._written = number
        except OSError as error:
            log.warning("replica_unsaved", extra={"path": str(self._path), "error": str(error)})
            return False
        return True
