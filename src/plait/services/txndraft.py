# SPDX-License-Identifier: Apache-2.0
"""What a transaction comes to while it is carried out on paper: what was read, what would be written, what would be answered.

Data in: what the rules of each kind of operation find (`txnkeys`, `txncatalog`). Data out: a `Draft`, whose references the agent turns into
keys of the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

from plait.model.cluster import Instance
from plait.model.discovery import CatalogNode, Check, OtherTags
from plait.model.kv import Entry

Ref = tuple[str, ...]
"""What an operation is about: ("kv", key), ("session", id), ("node", name), ("service", node, id) or ("check", node, id)."""
Written = Entry | CatalogNode | Instance | Check | OtherTags
Seen = TypeVar("Seen", bound=Entry | CatalogNode | Instance | Check)

PENDING = -1
"""Index of what the transaction itself writes, until it has one."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One result. `whole`: a key with its value."""

    what: Entry | CatalogNode | Instance | Check
    whole: bool = True


@dataclass(slots=True)
class Draft:
    """`reads`: all that the draft rests on, the absence of something included. `changes`: in their order, None = removed; with a node goes
    all that was put into the catalogue on it. `ignored`: fields of records that their agents did not want to have changed."""

    results: list[Shown] = field(default_factory=list)
    reads: set[Ref] = field(default_factory=set)
    changes: list[tuple[Ref, Written | None]] = field(default_factory=list)
    ignored: list[tuple[Ref, tuple[str, ...]]] = field(default_factory=list)


def pending(record: Seen, known: Entry | CatalogNode | Instance | Check | None) -> Seen:
    """`record` as it is shown after it was written: as old as what it replaces, with an index that is not known yet."""
    return _indexed(record, known.create_index if known is not None else PENDING, PENDING)


def dated(shown: Shown, revision: int) -> Shown:
    """The result after all was written with that revision."""
    create, modify = (revision if index == PENDING else index for index in (shown.what.create_index, shown.what.modify_index))
    return replace(shown, what=_indexed(shown.what, create, modify))


def _indexed(record: Seen, create: int, modify: int) -> Seen:
    if isinstance(record, Entry):
        return record._replace(create_index=create, modify_index=modify)
    return replace(record, create_index=create, modify_index=modify)
