# SPDX-License-Identifier: Apache-2.0
"""Keys in order, each with the revision of its last change: which of them start with a prefix, and the newest revision among those.

Data in: keys with revisions that only grow. Data out: ranges in code point order (the same as byte order of UTF-8). The keys lie in blocks
that know their newest revision, so that the newest of a prefix costs a look at every block of the range and at the keys of two blocks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

_BLOCK = 512
"""Keys of a block, at most; one that is full is cut in two."""


def end_of(prefix: str) -> str | None:
    """The first text behind all that start with `prefix`; None if there is none behind them."""
    kept = prefix.rstrip(chr(0x10FFFF))
    return kept[:-1] + chr(ord(kept[-1]) + 1) if kept else None


class KeyOrder:
    """Mutable. `set` costs one block's length, whatever the number of keys."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}
        self._blocks: list[list[str]] = []
        self._first: list[str] = []
        """First key of each block."""
        self._newest: list[int] = []
        """Newest revision of each block."""

    def __len__(self) -> int:
        return len(self._revisions)

    def get(self, key: str) -> int:
        """The key's revision, 0 without it."""
        return self._revisions.get(key, 0)

    def set(self, key: str, revision: int) -> None:
        """Add the key, or change its revision, which is higher than any before."""
        at, new = self._block_of(key), key not in self._revisions
        self._revisions[key] = revision
        if not self._blocks:
            self._insert_block(0, [key], revision)
            return
        self._newest[at] = revision
        if new:
            block = self._blocks[at]
            insort(block, key)
            self._first[at] = block[0]
            if len(block) > _BLOCK:
                self._cut(at)

    def drop(self, key: str) -> None:
        """Remove the key if it is there."""
        revision = self._revisions.pop(key, 0)
        if not revision:
            return
        at = self._block_of(key)
        block = self._blocks[at]
        del block[bisect_left(block, key)]
        if not block:
            del self._blocks[at], self._first[at], self._newest[at]
            return
        self._first[at] = block[0]
        if revision == self._newest[at]:
            self._newest[at] = self._newest_of(block)

    def below(self, prefix: str) -> Iterator[str]:
        """The keys that start with `prefix`, in order."""
        key = self.at_or_after(prefix)
        if key is None:
            return
        number = self._block_of(key)
        start = bisect_left(self._blocks[number], key)
        for block in self._blocks[number:]:
            for key in block[start:] if start else block:
                if not key.startswith(prefix):
                    return
                yield key
            start = 0

    def at_or_after(self, key: str) -> str | None:
        """The first key that is not before `key`."""
        if not self._blocks:
            return None
        number = self._block_of(key)
        block = self._blocks[number]
        at = bisect_left(block, key)
        if at < len(block):
            return block[at]
        return self._first[number + 1] if number + 1 < len(self._blocks) else None

    def newest(self, prefix: str) -> int:
        """The newest revision of the keys that start with `prefix`, 0 without any."""
        if not self._blocks:
            return 0
        end = end_of(prefix)
        low = self._block_of(prefix)
        high = len(self._blocks) - 1 if end is None else self._block_of(end)
        found = max(self._newest[low + 1 : high], default=0)
        for number in {low, high}:
            found = max(found, self._newest_of(key for key in self._blocks[number] if key.startswith(prefix)))
        return found

    def _newest_of(self, keys: Iterable[str]) -> int:
        return max((self._revisions[key] for key in keys), default=0)

    def _block_of(self, key: str) -> int:
        """Number of the block where `key` is or would be put."""
        return (bisect_right(self._first, key) or 1) - 1

    def _insert_block(self, at: int, block: list[str], newest: int) -> None:
        self._blocks.insert(at, block)
        self._first.insert(at, block[0])
        self._newest.insert(at, newest)

    def _cut(self, at: int) -> None:
        block = self._blocks[at]
        half = block[len(block) // 2 :]
        del block[len(block) // 2 :]
        self._newest[at] = self._newest_of(block)
        self._insert_block(at + 1, half, self._newest_of(half))
