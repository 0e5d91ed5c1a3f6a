# SPDX-License-Identifier: Apache-2.0
"""A store that lives in this process only: for tests, and for an agent that has no cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from plait.store.local import HISTORY, HISTORY_BYTES, LocalStore
from plait.store.state import Commit, History, State
from plait.store.write import Write

T = TypeVar("T")


class MemoryStore(LocalStore):
    """Store seam without a disk: a commit is in force at once, and gone with the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, history: int = HISTORY) -> None:
        state = State()
        super().__init__(state, History(state.revision, history, HISTORY_BYTES), clock)

    def _persist(self, commit: Commit, result: T) -> Write[T]:
        self._take([commit])
        return Write(0, commit, 0, result, is_done=True)
