# SPDX-License-Identifier: Apache-2.0
"""The revisioned map behind every local store: pure rules of transactions, leases and history.

Data in: compares and operations. Data out: a `Commit` (what one revision changes), which is applied to a `State` (the present) and
appended to a `History` (the bounded past that watches read). No clock, no I/O: a commit can be evaluated ahead of the disk and applied
once it is durable.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from plait.model.errors import Compacted, ConfigError, NotFound
from plait.store.api import Change, Compare, Delete, Item, Listing, Put

MAX_KEY = 1024
"""Bytes of a key."""
MAX_TXN = 2 * 1024 * 1024
"""Bytes of all keys and values of one transaction."""
MAX_TTL = 86_400.0
"""Seconds of a lease: it is for things that need renewal, not for records."""
FIRST_REVISION = 1
"""The revision of a store in which nothing was ever written (Consul's index is never 0)."""


class Commit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What becomes durable at once: the revision after it, its changes in order, leases made (id, ttl in seconds) and ended."""

    revision: int
    changes: tuple[Change, ...] = ()
    granted: tuple[tuple[int, float], ...] = ()
    ended: tuple[int, ...] = ()


def check_txn(compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> None:
    """Raise ConfigError for a transaction that no store takes (bad key, too large)."""
    size, length = 0, 0
    known: str | None = None
    for compare in compares:
        known = compare.key
        length = check_key(known)
        size += length
    for op in ops:
        if not isinstance(op, Put):
            size += check_key(op.key, op.prefix)
        elif op.key == known:  # most writes compare what they put
            size += length + len(op.value)
        else:
            size += check_key(op.key) + len(op.value)
    if size > MAX_TXN:
        raise ConfigError(
            "store transaction", f"{len(ops)} operations", f"holds {size} bytes, more than {MAX_TXN}", "split it into smaller ones"
        )


def check_key(key: str, prefix: bool = False) -> int:
    """Length of `key` in bytes. Raises ConfigError if it is empty (unless a prefix), too long or no clean UTF-8 text."""
    try:
        length = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise ConfigError("store key", key, "is not valid Unicode text") from error
    if (not key and not prefix) or length > MAX_KEY or "\0" in key:
        raise ConfigError("store key", key, f"must be 1 to {MAX_KEY} bytes of text without NUL")
    return length


def check_ttl(ttl: float) -> None:
    """Raise ConfigError unless `ttl` is a sensible time to live."""
    if not 0 < ttl <= MAX_TTL:
        raise ConfigError("lease ttl", ttl, f"must be above 0 and at most {MAX_TTL:.0f} seconds")


@dataclass(slots=True)
class State:
    """Every key at one revision. Mutable; `copy` shares the immutable items."""

    revision: int = FIRST_REVISION
    items: dict[str, Item] = field(default_factory=dict)
    leases: dict[int, float] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)
    _held: dict[int, set[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, revision: int, items: Sequence[Item], leases: dict[int, float]) -> State:
        """A state of these items, in any order. Leases without a record here are kept as held: their keys end with them."""
        state = cls(revision, {item.key: item for item in items}, dict(leases))
        state._order = sorted(state.items)
        for item in items:
            if item.lease:
                state._held.setdefault(item.lease, set()).add(item.key)
        return state

    def copy(self) -> State:
        held = {lease: set(keys) for lease, keys in self._held.items()}
        return State(self.revision, dict(self.items), dict(self.leases), list(self._order), held)

    def below(self, prefix: str) -> Iterator[Item]:
        """Items whose key starts with `prefix`, in byte order of key (code point order, the same for UTF-8)."""
        for at in range(bisect_left(self._order, prefix), len(self._order)):
            key = self._order[at]
            if not key.startswith(prefix):
                return
            yield self.items[key]

    def listing(self, prefix: str) -> Listing:
        return Listing(tuple(self.below(prefix)), self.revision)

    def evaluate(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> Commit | None:
        """What the transaction would change; None if a compare fails. Several operations on one key give one change, the last wins.

        Raises NotFound for a put with a lease that is not there. Every put changes its key, also to an equal value; after a deletion in the
        same transaction it makes it anew.
        """
        for compare in compares:
            item = self.items.get(compare.key)
            if (item.mod_revision if item else 0) != compare.mod_revision:
                return None
        revision = self.revision + 1
        if len(ops) == 1 and isinstance(ops[0], Put):  # most of them
            return Commit(revision, (Change("put", self._put(ops[0], self.items.get(ops[0].key), revision), revision),))
        after: dict[str, Item | None] = {}
        for op in ops:
            if isinstance(op, Put):
                before = after[op.key] if op.key in after else self.items.get(op.key)
                after[op.key] = self._put(op, before, revision)
            elif not op.prefix:
                after[op.key] = None
            else:
                for key in [item.key for item in self.below(op.key)] + [key for key in after if key.startswith(op.key)]:
                    after[key] = None
        changes = tuple(self._changes(after, revision))
        return Commit(revision if changes else self.revision, changes)

    def _put(self, op: Put, before: Item | None, revision: int) -> Item:
        if op.lease and op.lease not in self.leases:
            raise NotFound(f"put {op.key} with lease {op.lease}: the lease has ended or never was; grant a new one and put again")
        return Item(op.key, op.value, before.create_revision if before else revision, revision, op.lease)

    def _changes(self, after: dict[str, Item | None], revision: int) -> Iterator[Change]:
        for key, item in after.items():
            if item is not None:
                yield Change("put", item, revision)
            elif (before := self.items.get(key)) is not None:
                yield Change("delete", before, revision)

    def end_lease(self, lease: int) -> Commit:
        """The commit that ends `lease` and deletes its keys (in byte order)."""
        keys = sorted(self._held.get(lease, ()))
        revision = self.revision + 1 if keys else self.revision
        return Commit(revision, tuple(Change("delete", self.items[key], revision) for key in keys), ended=(lease,))

    def apply(self, commit: Commit) -> None:
        """Take over a commit that was evaluated on this very state."""
        self.revision = commit.revision
        if commit.granted:
            self.leases.update(commit.granted)
        for change in commit.changes:
            item = change.item
            before = self.items.get(item.key)
            if before is not None and before.lease:
                self._release(before)
            if change.kind == "put":
                self.items[item.key] = item
                if before is None:
                    insort(self._order, item.key)
                if item.lease:
                    self._held.setdefault(item.lease, set()).add(item.key)
            elif before is not None:
                del self.items[before.key], self._order[bisect_left(self._order, before.key)]
        for lease in commit.ended:
            self.leases.pop(lease, None)

    def _release(self, item: Item) -> None:
        held = self._held.get(item.lease)
        if held is not None:
            held.discard(item.key)
            if not held:
                del self._held[item.lease]


class History:
    """The last commits, without gap, bounded in number and in bytes; older ones are compacted away."""

    def __init__(self, revision: int, limit: int, limit_bytes: int) -> None:
        self.floor = revision
        """Changes with a revision above this are held."""
        self._commits: list[Commit] = []
        self._ends: list[int] = []
        """For each commit the bytes that ever came up to it."""
        self._limit, self._limit_bytes = limit, limit_bytes
        self._gone = 0
        """Bytes that were dropped."""

    @property
    def head(self) -> int:
        return self.floor + len(self._commits)

    def append(self, *commits: Commit) -> None:
        """Add the commits of the revisions from `head` + 1 on; drop the oldest tenth and more when a bound is passed."""
        end = self._ends[-1] if self._ends else self._gone
        for commit in commits:
            for change in commit.changes:
                end += len(change.item.key) + len(change.item.value)
            self._ends.append(end)
        self._commits += commits
        surplus_commits = len(self._commits) - self._limit
        drop = max(surplus_commits, self._limit // 10) if surplus_commits > 0 else 0
        surplus = self._ends[-1] - self._limit_bytes
        if self._gone < surplus:
            drop = max(drop, min(bisect_left(self._ends, surplus) + 1, len(self._commits) - 1))
        if drop:
            self._gone = self._ends[drop - 1]
            del self._commits[:drop], self._ends[:drop]
            self.floor += drop

    def since(self, revision: int, prefix: str, limit: int = 1000) -> tuple[tuple[Change, ...], int]:
        """Changes below `prefix` after `revision`, of at most `limit` revisions, and the revision they reach.

        Raises Compacted if some of them are gone, or if `revision` lies in the future: then the store lost data.
        """
        if not self.floor <= revision <= self.head:
            raise Compacted(
                f"watch {prefix or 'everything'} from revision {revision}: the store holds revisions {self.floor} to {self.head}; "
                "list again and watch from the revision of the listing"
            )
        start = revision - self.floor
        commits = self._commits[start : start + limit]
        found = chain.from_iterable([commit.changes for commit in commits])
        return tuple(change for change in found if change.item.key.startswith(prefix)) if prefix else tuple(found), revision + len(commits)
