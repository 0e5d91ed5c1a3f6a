# SPDX-License-Identifier: Apache-2.0
"""The replicated cluster merged with this node's own truth -> Snapshot.

Data in: items and changes from the replica, and the node's own endpoints, containers, instances and blocks, which win over what the
store says of them (a node is the authority for what runs on it). Data out: an immutable `Snapshot`, rebuilt only where something changed.
Own containers of a runtime are taken from the store until that runtime has reported for the first time, so that a restart of the
agent does not make them vanish for a moment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping

from plait import __version__
from plait.agent.keys import TYPES, Record, kind_of, node_key, own_prefixes, record_key
from plait.agent.merged import Merged
from plait.backends import BACKENDS
from plait.model.addr import IPAddress
from plait.model.cluster import Block, Container, Endpoint, Instance, Network, Snapshot
from plait.model.discovery import CatalogNode, Check, OtherTags
from plait.model.errors import NotSupported, PlaitError, StoreUnavailable
from plait.store.api import Change, Item, Put
from plait.store.codec import decode, encode

log = logging.getLogger("plait.view")
_CATCH_UP_S = 5.0


class View:
    """The one mutable place where replicated and own state meet. Not thread-safe: used from the loop only. `beyond`: why networks that the
    store has are none here, by name: a newer agent made them."""

    def __init__(self, me: str) -> None:
        self.me = me
        self.revision = 0
        self._stored: dict[str, Record] = {}
        self._items: dict[str, Item] = {}
        self._alive: set[str] = set()
        self._own: dict[str, Record] = {}
        self._reported: set[str] = set()
        self._silent: frozenset[str] = frozenset()
        self.beyond: dict[str, str] = {}
        self._merged = Merged(me)
        self._answered: Mapping[IPAddress, frozenset[str]] = {}
        self._prefixes = own_prefixes(me)
        self._unsettled: set[str] = set()
        self._snapshot: Snapshot | None = None
        self._waiters: dict[asyncio.Future[bool], int] = {}
        self._listeners: list[Callable[[frozenset[str]], None]] = []

    # --- what the store says

    def change(self, changes: Iterable[Change], revision: int) -> None:
        """Apply replicated changes in their order; the replica is at `revision` after them."""
        kinds = set()
        for change in changes:
            kinds.add(kind_of(change.item.key))
            if change.kind == "put":
                self._take(change.item)
            else:
                self._forget(change.item.key)
        self.revision = revision
        self._snapshot = None
        for waiter in [waiter for waiter, wanted in self._waiters.items() if wanted <= revision]:
            del self._waiters[waiter]
            _set(waiter, True)
        if kinds:
            self._changed(frozenset(kinds))

    async def caught_up(self, revision: int) -> None:
        """Wait until the replica has `revision`. StoreUnavailable after five seconds."""
        if self.revision >= revision:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters[waiter] = revision
        timer = loop.call_later(_CATCH_UP_S, _set, waiter, False)
        try:
            reached = await waiter
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)
        if not reached:
            raise StoreUnavailable(f"the replica is at revision {self.revision} and did not reach {revision} in {_CATCH_UP_S:.0f} s")

    def _take(self, item: Item) -> None:
        kind = kind_of(item.key)
        if kind == "alive":
            self._alive.add(item.key.partition("/")[2])
            return
        wanted = TYPES.get(kind)
        if wanted is None:
            return
        try:
            record = self._readable(decode(wanted, item.value, item.key))
        except PlaitError as error:
            log.warning("record_unreadable", extra={"key": item.key, "error": str(error)})
            return
        if isinstance(record, Instance | Check | CatalogNode):
            record = dataclasses.replace(record, create_index=item.create_revision, modify_index=item.mod_revision)
        elif isinstance(record, OtherTags):
            record = dataclasses.replace(record, modify_index=item.mod_revision)
        self._stored[item.key] = record
        self._items[item.key] = item
        self._settle(item.key)

    def _readable(self, record: Record) -> Record:
        """The same, unless it is a network that goes by a backend of a newer version: NotSupported."""
        if isinstance(record, Network):
            self.beyond.pop(record.name, None)
            if record.backend not in BACKENDS:
                self.beyond[record.name] = f"network {record.name} goes by {record.backend}, which plait {__version__} does not have"
                raise NotSupported(self.beyond[record.name])
        return record

    def _forget(self, key: str) -> None:
        self.beyond.pop(key.removeprefix("networks/"), None)
        if kind_of(key) == "alive":
            self._alive.discard(key.partition("/")[2])
        self._stored.pop(key, None)
        self._items.pop(key, None)
        self._settle(key)

    def stored(self, prefix: str) -> Mapping[str, Item]:
        """Replicated items below `prefix` by key, as the store has them."""
        return {key: item for key, item in self._items.items() if key.startswith(prefix)}

    def item(self, key: str) -> Item | None:
        """The replicated item of a record, None if the store does not hold it."""
        return self._items.get(key)

    def record(self, key: str) -> Record | None:
        """The replicated record, decoded."""
        return self._stored.get(key)

    def counting(self, key: str) -> Record | None:
        """What counts under `key`, with its indexes: the own record, else the replicated one unless this node knows better. A block that
        another node holds by the store is that node's."""
        own, stored = self._own.get(key), self._stored.get(key)
        if isinstance(own, Block) and isinstance(stored, Block) and stored.node != self.me:
            return stored  # the store decides who holds a block: it went to another node while this one was away
        if own is not None:
            return self._indexed(key, own)
        return stored if stored is not None and not self._hidden(stored) else None

    def judge_silent(self, nodes: frozenset[str]) -> None:
        """Nodes that this node finds dead although the last it heard of the store says otherwise: those that carried it."""
        if nodes != self._silent:
            self._silent = nodes
            self._changed(frozenset({"alive"}))

    def alive_in_store(self, node: str) -> bool:
        return node in self._alive

    # --- what this node says

    def put(self, record: Record) -> None:
        """Set one own record (endpoint, instance, block, node)."""
        key = record_key(record)
        if self._own.get(key) != record:
            self._own[key] = record
            self._settle(key)
            self._changed(frozenset({kind_of(key)}))

    def drop(self, record: Record) -> None:
        key = record_key(record)
        if self._own.pop(key, None) is not None:
            self._settle(key)
            self._changed(frozenset({kind_of(key)}))

    def report(self, runtime: str, containers: Iterable[Container]) -> None:
        """Replace the own containers of one runtime by its full present list."""
        fresh = {record_key(container): container for container in containers}
        stale = [key for key, r in self._own.items() if isinstance(r, Container) and r.runtime == runtime and key not in fresh]
        first = runtime not in self._reported
        self._reported.add(runtime)
        changed = [key for key, container in fresh.items() if self._own.get(key) != container]
        for key in stale:
            del self._own[key]
        self._own.update(fresh)
        if first:  # what the store says of this runtime's containers and their services counts no longer
            changed += [*self.stored(f"containers/{self.me}/"), *self.stored(f"instances/{self.me}/")]
        for key in (*stale, *changed):
            self._settle(key)
        if stale or changed or first:
            self._changed(frozenset({"containers", "instances"} if first else {"containers"}))

    def answer(self, answered: Mapping[IPAddress, frozenset[str]]) -> None:
        """This node's DNS gave these addresses for names that rules are for."""
        self._answered = answered
        self._changed(frozenset({"answered"}))

    def reported(self, runtime: str) -> bool:
        return runtime in self._reported

    def unsettled(self) -> tuple[str, ...]:
        """Keys of this node whose own record and stored item may differ: all that changed on either side since they were `settled`."""
        return tuple(self._unsettled)

    def settled(self, key: str) -> None:
        """Own record and stored item are known to agree."""
        self._unsettled.discard(key)

    def own(self, key: str) -> Record | None:
        """The own record of that key."""
        return self._own.get(key)

    def introduction(self) -> list[Put]:
        """This node's record if the store lacks it: to be written with its first block, so that each block is of a node that exists."""
        own = self._own.get(node_key(self.me))
        return [Put(node_key(self.me), encode(own))] if own is not None and node_key(self.me) not in self._items else []

    def own_records(self) -> Mapping[str, Record]:
        """What this node publishes, by key."""
        return self._own

    # --- the merged picture

    @property
    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = self._build()
        return self._snapshot

    def follow(self) -> set[tuple[str, Hashable]]:
        """A set that gets (kind, key in the snapshot) of every record that changes from now on; whoever asked for it empties it."""
        return self._merged.follow()

    def subscribe(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener(kinds)` after each change, in the loop; it must not block."""
        self._listeners.append(listener)

    def _changed(self, kinds: frozenset[str]) -> None:
        self._snapshot = None
        for listener in self._listeners:
            listener(kinds)

    def _hidden(self, record: Record) -> bool:
        """Whether a replicated record is about this node and this node knows better."""
        match record:
            case Endpoint():
                return record.node == self.me
            case Instance(runtime=runtime) if runtime:
                return record.node == self.me and runtime in self._reported
            case Instance() | Check():
                return record.node == self.me and record.origin == "agent"
            case Container():
                return record.node == self.me and record.runtime in self._reported
        return False

    def _settle(self, key: str) -> None:
        """Take over what counts now under `key`."""
        self._snapshot = None
        own = self._own.get(key)
        if own is not None or key.startswith(self._prefixes):
            self._unsettled.add(key)
        else:
            self._unsettled.discard(key)
        counts = self.counting(key)
        if counts is not None:
            self._merged.put(key, counts)
        else:
            self._merged.drop(key)

    def _build(self) -> Snapshot:
        alive = frozenset((self._alive - self._silent) | {self.me})
        return dataclasses.replace(self._merged.snapshot(self.revision, alive), answered=self._answered)

    def _indexed(self, key: str, own: Record) -> Record:
        """With the indexes of the stored item, or those of the next revision as long as it is not there."""
        if not isinstance(own, Instance | Check):
            return own
        item = self._items.get(key)
        if item is None:
            return dataclasses.replace(own, create_index=self.revision + 1, modify_index=self.revision + 1)
        return dataclasses.replace(own, create_index=item.create_revision, modify_index=item.mod_revision)


def _set(waiter: asyncio.Future[bool], reached: bool) -> None:
    if not waiter.done():
        waiter.set_result(reached)
