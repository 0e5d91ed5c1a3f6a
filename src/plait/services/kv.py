# SPDX-License-Identifier: Apache-2.0
"""Consul's key-value store as pure rules: what a table of entries says, and what a write makes of an entry.

Data in: changes of entries with the store's revisions, requests. Data out: entries in byte order of key, the index of each query, the
entry that a write leaves. The index of a query rises exactly with what concerns it: deletions leave a mark (a tombstone) for that.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from plait.model.kv import Entry
from plait.services.keyorder import KeyOrder, end_of

MAX_VALUE = 512 * 1024
"""Bytes of one value."""
MAX_FLAGS = (1 << 64) - 1
_TOMBSTONES = 16_384
"""Deletions that are remembered by key; of older ones only the revision of the last is, and counts for every key."""


class Table:
    """All entries at one revision. Mutable; `set` and `drop` are told every change in the order of the store."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._order = KeyOrder()
        self._deleted = KeyOrder()
        self._oldest: OrderedDict[str, None] = OrderedDict()
        self._floor = 1

    def __len__(self) -> int:
        return len(self._entries)

    def start_at(self, revision: int) -> None:
        """Deletions up to this revision were not seen: any key may have been deleted then."""
        self._floor = max(self._floor, revision)

    def set(self, entry: Entry) -> None:
        self._entries[entry.key] = entry
        self._order.set(entry.key, entry.modify_index)
        if self._oldest and entry.key in self._oldest:
            del self._oldest[entry.key]
            self._deleted.drop(entry.key)

    def drop(self, key: str, revision: int) -> None:
        """`key` was deleted with that revision."""
        if self._entries.pop(key, None) is not None:
            self._order.drop(key)
        self._deleted.set(key, revision)
        self._oldest[key] = None
        self._oldest.move_to_end(key)
        while len(self._oldest) > _TOMBSTONES:
            forgotten, _ = self._oldest.popitem(last=False)
            self._floor = max(self._floor, self._deleted.get(forgotten))
            self._deleted.drop(forgotten)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def below(self, prefix: str) -> Iterator[Entry]:
        """Entries whose key starts with `prefix`, in byte order of key."""
        return map(self._entries.__getitem__, self._order.below(prefix))

    def keys_below(self, prefix: str, separator: str) -> list[str]:
        """The keys that start with `prefix`, each cut after the first `separator` behind it ("" = not cut), without repetition. What is
        cut costs one look, however many keys it stands for."""
        if not separator:
            return list(self._order.below(prefix))
        found: list[str] = []
        key = self._order.at_or_after(prefix)
        while key is not None and key.startswith(prefix):
            at = key.find(separator, len(prefix))
            found.append(key if at < 0 else key[: at + len(separator)])
            after = found[-1] + "\0" if at < 0 else end_of(found[-1])
            key = self._order.at_or_after(after) if after is not None else None
        return found

    def index_of(self, key: str) -> int:
        """The index of a query for one key: the entry's own while there is one (clients use it for check-and-set), else that of its end."""
        entry = self._entries.get(key)
        return entry.modify_index if entry is not None else self._deleted.get(key) or self._floor

    def index_below(self, prefix: str) -> int:
        """The index of a query for all keys that start with `prefix`."""
        return max(self._floor, self._order.newest(prefix), self._deleted.newest(prefix))


class KvPut(NamedTuple):
    """A write of one key. `cas`: only if that is its index now (0: only if there is no such key). `acquire`, `release`: a session that
    takes or gives back the lock with it. At most one of the three. `ttl`: seconds after which the key goes by itself, 0 = never."""

    key: str
    value: bytes
    flags: int = 0
    cas: int | None = None
    acquire: str = ""
    release: str = ""
    ttl: float = 0.0


def put(known: Entry | None, request: KvPut) -> Entry | bool:
    """The entry that the write leaves; True if everything is so already, False if it must not be written."""
    if request.cas is not None and request.cas != (known.modify_index if known is not None else 0):
        return False
    base = known or Entry(request.key)
    session, lock_index = base.session, base.lock_index
    if request.acquire:
        if session and session != request.acquire:
            return False
        lock_index += session != request.acquire
        session = request.acquire
    elif request.release:
        if session != request.release:
            return False
        session = ""
    written = Entry(request.key, request.value, request.flags, session, lock_index, base.create_index, base.modify_index)
    return True if written == known and not request.ttl else written


def may_delete(known: Entry | None, cas: int | None) -> bool:
    """Whether a deletion under `cas` goes ahead. A missing key is deleted already, whatever index was asked for."""
    return known is None or cas is None or cas == known.modify_index


def entry_json(entry: Entry, with_value: bool = True) -> dict[str, object]:
    """The entry as Consul's API shows it; an empty value is null."""
    shown: dict[str, object] = {
        "LockIndex": entry.lock_index,
        "Key": entry.key,
        "Flags": entry.flags,
        "Value": base64.b64encode(entry.value).decode() if entry.value and with_value else None,
    }
    if entry.session:
        shown["Session"] = entry.session
    return shown | {"CreateIndex": entry.create_index, "ModifyIndex": entry.modify_index}


def released(entries: Iterable[Entry], ended: Mapping[str, str]) -> list[tuple[Entry, Entry | None]]:
    """What becomes of locked entries when their sessions end: (entry, what is left of it). `ended`: session -> its behaviour."""
    held = [entry for entry in entries if entry.session in ended]
    return [(entry, None if ended[entry.session] == "delete" else entry._replace(session="")) for entry in held]
