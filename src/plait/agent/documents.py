# SPDX-License-Identifier: Apache-2.0
"""Replicated records of one kind that are not part of the snapshot: those of Consul's that nothing else of plait looks at.

Data in: changes of the store. Data out: the records, each with its revision, and an event for who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from plait.model.errors import PlaitError
from plait.store.api import Change
from plait.store.codec import decode

log = logging.getLogger("plait.documents")
T = TypeVar("T")


class Documents(Generic[T]):
    """The records below `kind`/, by what follows in their key. Used from the loop only."""

    def __init__(self, kind: str, record: type[T]) -> None:
        self.kind, self._record = kind, record
        self._found: dict[str, tuple[T, int]] = {}
        self._deleted = 1
        self.index = 1
        """Revision of the last change of any of them, deletions included."""
        self._waiters: set[asyncio.Event] = set()

    def start_at(self, revision: int) -> None:
        """Changes up to this revision were not all seen: any record may have been deleted then."""
        self._deleted, self.index = max(self._deleted, revision), max(self.index, revision)

    def change(self, changes: Iterable[Change]) -> None:
        """Replicated changes in their order; those of other kinds are passed over."""
        for change in changes:
            kind, _, name = change.item.key.partition("/")
            if kind != self.kind:
                continue
            self._found.pop(name, None)
            self.index = max(self.index, change.revision)
            if change.kind == "delete":
                self._deleted = max(self._deleted, change.revision)
            else:
                try:
                    self._found[name] = decode(self._record, change.item.value, change.item.key), change.item.mod_revision
                except PlaitError as error:
                    log.warning("document_unreadable", extra={"key": change.item.key, "error": str(error)})
            for waiter in self._waiters:
                waiter.set()

    def get(self, name: str) -> tuple[T, int] | None:
        """The record and the revision of its last change."""
        return self._found.get(name)

    def index_of(self, name: str) -> int:
        """The index of a query for that record, which there need not be."""
        found = self._found.get(name)
        return found[1] if found is not None else self._deleted

    def items(self) -> list[tuple[str, T, int]]:
        """(name, record, revision), the oldest change first."""
        return sorted(((name, record, at) for name, (record, at) in self._found.items()), key=lambda row: (row[2], row[0]))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[asyncio.Event]:
        """An event that is set by each change."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            yield event
        finally:
            self._waiters.discard(event)
