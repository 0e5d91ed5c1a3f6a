# SPDX-License-Identifier: Apache-2.0
"""The store seam: revisioned keys, compare-and-set transactions, watches from a revision, leases.

One contract suite (`tests/contract/test_store.py`) runs over every implementation: memory, sqlite, remote.
Keys are `/`-separated text, values bytes (JSON by convention). Revisions are integers >= 1 (an empty store has 1) that grow by one
with every transaction that changed something; a put changes its key also if the value is the same. Consul's index is this revision.
The records are msgspec's structs because a write makes a dozen of them: a frozen dataclass takes several times as long.
They hold no cycles, so that the collector need not look at them. What a store's file holds of them are arrays: new fields go to the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Literal, Protocol

import msgspec


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Listing(msgspec.Struct, frozen=True, gc=False):
    """`items` in byte order of key; `revision` that of the whole store when they were read."""

    items: tuple[Item, ...]
    revision: int


class Compare(msgspec.Struct, frozen=True, gc=False):
    """True if the key's mod_revision equals `mod_revision`; 0 means: the key does not exist."""

    key: str
    mod_revision: int


class Put(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Removes `key`; with `prefix` every key that starts with it. Deleting what is absent succeeds and changes nothing."""

    key: str
    prefix: bool = False


class TxnResult(msgspec.Struct, frozen=True, gc=False):
    """`ok` False: a compare failed and nothing was written. `revision`: of the store after the transaction."""

    ok: bool
    revision: int


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One changed key. `item` is the new state for "put", the last one for "delete"; `revision` that of the transaction."""

    kind: Literal["put", "delete"]
    item: Item
    revision: int


class Store(Protocol):
    async def get(self, key: str) -> Item | None: ...

    async def list(self, prefix: str) -> Listing: ...

    def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> Awaitable[TxnResult]:
        """Atomic: all compares hold and all ops are durable, or nothing happened. The last operation on a key counts.

        Raises StoreUnavailable (over the wire its fate is then unknown: compares make a repetition safe), NotFound for a put with a lease
        that has ended, ConfigError for a bad key or more than 2 MiB."""
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        """Yield all changes below `prefix` with revision > `from_revision`, in order, one tuple a revision or more,
        without gap or repetition. Raises Compacted if history is gone or `from_revision` lies ahead of the store (it lost data),
        StoreUnavailable if the connection is."""
        ...

    async def grant(self, ttl: float) -> int:
        """A lease of `ttl` seconds (at most a day); keys put with its id are deleted when it ends. It outlives a connection, and a
        restart of the store gives it its full time again."""
        ...

    async def keepalive(self, lease: int) -> bool:
        """Renew; False if the lease has ended already."""
        ...

    async def revoke(self, lease: int) -> None: ...

    async def close(self) -> None: ...
