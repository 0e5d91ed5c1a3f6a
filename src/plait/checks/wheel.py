# SPDX-License-Identifier: Apache-2.0
"""A hashed timer wheel: many deadlines, each set again and again, at a constant price.

Keys in, keys out: `put` sets the one deadline of a key, `take` gives those that are due. A deadline is rounded up to the next tick,
so that nothing comes early. After G. Varghese and T. Lauck, "Hashed and hierarchical timing wheels" (1987), scheme 6. Not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
TICK_S = 0.02
SLOTS = 512


class Wheel(Generic[K]):
    """`now` is where the clock stands; the clock's unit is seconds and it never goes back."""

    def __init__(self, now: float, tick_s: float = TICK_S, slots: int = SLOTS) -> None:
        self._tick_s = tick_s
        self._slots: list[dict[K, int]] = [{} for _ in range(slots)]
        self._due: dict[K, int] = {}
        self._at = self._floor(now)

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def put(self, key: K, when: float) -> None:
        """Set or move the deadline of `key`. One that is past already comes with the next tick."""
        self.drop(key)
        tick = max(math.ceil(when / self._tick_s - 1e-9), self._at + 1)
        self._due[key] = tick
        self._slots[tick % len(self._slots)][key] = tick

    def drop(self, key: K) -> None:
        """Forget the deadline of `key`, if it has one."""
        tick = self._due.pop(key, None)
        if tick is not None:
            del self._slots[tick % len(self._slots)][key]

    def take(self, now: float) -> list[K]:
        """Remove and return what is due at `now`, earliest first."""
        until = self._floor(now)
        found: list[tuple[int, K]] = []
        for tick in range(max(self._at + 1, until - len(self._slots) + 1), until + 1):
            slot = self._slots[tick % len(self._slots)]
            found += [(due, key) for key, due in slot.items() if due <= until]
        self._at = max(self._at, until)
        found.sort(key=lambda entry: entry[0])
        for _, key in found:
            self.drop(key)
        return [key for _, key in found]

    def next(self) -> float | None:
        """A moment that is not after the earliest deadline, and at most one turn of the wheel away; None if there is none."""
        if not self._due:
            return None
        for tick in range(self._at + 1, self._at + len(self._slots)):
            if self._slots[tick % len(self._slots)]:
                return tick * self._tick_s
        return (self._at + len(self._slots)) * self._tick_s

    def _floor(self, now: float) -> int:
        return math.floor(now / self._tick_s + 1e-9)
