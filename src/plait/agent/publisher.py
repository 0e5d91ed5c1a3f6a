# SPDX-License-Identifier: Apache-2.0
"""Publishes this node's own records: compares what the view says of this node with what the store holds and writes the difference.

Idempotent and driven by state, not by events: after any outage the next round publishes exactly what differs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from plait.agent.keys import alive_key, network_key, own_prefixes
from plait.agent.view import View
from plait.ipam import is_block_of
from plait.model.cluster import Block, Container, Instance
from plait.model.errors import StoreUnavailable
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.publisher")
_BATCH, _BATCH_BYTES = 400, 1 << 20
"""Operations and bytes of one transaction, so that a first publication of many or of large records stays below the store's limit."""


class Publisher:
    def __init__(self, view: View, store: Store, caught_up: Callable[[int], Awaitable[None]]) -> None:
        self._view, self._store, self._caught_up = view, store, caught_up
        self._prefixes = own_prefixes(view.me)
        self._wake = asyncio.Event()
        self._lease = 0
        self._round = asyncio.Lock()

    def wake(self) -> None:
        self._wake.set()

    def difference(self) -> list[Put | Delete]:
        """What the store lacks of this node's records, and what it holds of them that is gone."""
        ops: list[Put | Delete] = []
        for key in sorted(self._view.unsettled()):
            own, item = self._view.own(key), self._view.item(key)
            body = None if own is None or isinstance(own, Block) else encode(own)
            if body is not None and (item is None or item.value != body):
                ops.append(Put(key, body))
            elif body is None and item is not None and key.startswith(self._prefixes):
                if not self._awaited(key):
                    ops.append(Delete(key))
            else:
                self._view.settled(key)
        return ops

    def _awaited(self, key: str) -> bool:
        """A stored container whose runtime has not reported since the agent started may still be there, and so may what it registered."""
        record = self._view.record(key)
        return isinstance(record, Container | Instance) and bool(record.runtime) and not self._view.reported(record.runtime)

    async def publish(self) -> int:
        """One round; returns the number of operations written. Raises StoreUnavailable."""
        async with self._round:
            await self._reclaim_blocks()
            written = 0
            for batch in in_batches(self.difference()):
                result = await self._store.txn([], batch)
                await self._caught_up(result.revision)
                written += len(batch)
            return written

    async def _reclaim_blocks(self) -> None:
        """A block of ours that the store has lost (restored from an old copy) is taken again, unless somebody else holds it now or it is
        of a network that is gone."""
        for key, record in list(self._view.own_records().items()):
            if not isinstance(record, Block) or self._view.item(key) is not None:
                continue
            network, of = self._view.snapshot.networks.get(record.network), self._view.item(network_key(record.network))
            if network is not None and of is not None and is_block_of(network, record.cidr):
                ops = [Put(key, encode(record)), *self._view.introduction()]
                result = await self._store.txn([Compare(key, 0), Compare(of.key, of.mod_revision)], ops)
                await self._caught_up(result.revision)

    async def run(self) -> None:
        """Publish whenever woken, and every 30 s. Never returns."""
        while True:
            try:
                await self.publish()
                async with asyncio.timeout(30):
                    await self._wake.wait()
            except TimeoutError:
                pass
            except StoreUnavailable as error:
                log.warning("publish_failed", extra={"error": str(error)})
                await asyncio.sleep(1)
            self._wake.clear()

    async def stay_alive(self, ttl: float) -> None:
        """Keep this node's sign of life (a leased key) in the store. Never returns."""
        while True:
            try:
                if not self._lease or not await self._store.keepalive(self._lease) or not self._view.alive_in_store(self._view.me):
                    self._lease = await self._store.grant(ttl)
                    await self._store.txn([], [Put(alive_key(self._view.me), b"1", self._lease)])
                await asyncio.sleep(ttl / 3)
            except StoreUnavailable as error:
                log.warning("sign_of_life_failed", extra={"error": str(error)})
                await asyncio.sleep(1)


def in_batches(ops: Iterable[Put | Delete]) -> Iterator[list[Put | Delete]]:
    """The operations in their order, in transactions of bounded size; one that is larger by itself goes alone."""
    batch: list[Put | Delete] = []
    size = 0
    for op in ops:
        weight = len(op.value) if isinstance(op, Put) else 0
        if batch and (len(batch) == _BATCH or size + weight > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(op)
        size += weight
    if batch:
        yield batch
