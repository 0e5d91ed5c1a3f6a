# SPDX-License-Identifier: Apache-2.0
"""What the DNS child answers from: dotted name -> records, and the difference of two such tables.

`zone.build_table` makes a Table from a Snapshot in the agent; it crosses to the child as a tuple of plain values. Kept
free of heavy imports because the child loads it (see `message`).
"""

from __future__ import annotations

from collections.abc import Mapping

from plait.dns.message import Record

Records = tuple[Record, ...]
Head = tuple[bytes, bytes]
TableParts = tuple[Head, frozenset[bytes], int, dict[bytes, Records]]
ChangesParts = tuple[frozenset[bytes], int, dict[bytes, Records | None]]


class Table:
    """An immutable directory of names.

    `head` is (domain, datacentre), both dotted; `zones` are the dotted suffixes below which a name that is not in `names`
    does not exist at all; `serial` goes into SOA records; `names` maps canonical dotted names (see `grammar`) to their
    records, () for a name that only has others below it.
    """

    __slots__ = ("head", "names", "serial", "zones")

    def __init__(self, head: Head, zones: frozenset[bytes], serial: int, names: Mapping[bytes, Records]) -> None:
        self.head, self.zones, self.serial, self.names = head, zones, serial, names

    @property
    def domain(self) -> bytes:
        return self.head[0]

    @property
    def datacenter(self) -> bytes:
        return self.head[1]

    def parts(self) -> TableParts:
        """The table as plain values, `Table(*parts)` again on the other side."""
        return self.head, self.zones, self.serial, dict(self.names)


EMPTY = Table((b"consul", b"dc1"), frozenset((b"consul",)), 0, {})


class Changes:
    """What turns one table into another with the same head: `names` maps to the new records, None for a name that is gone."""

    __slots__ = ("names", "serial", "zones")

    def __init__(self, zones: frozenset[bytes], serial: int, names: Mapping[bytes, Records | None]) -> None:
        self.zones, self.serial, self.names = zones, serial, names

    def parts(self) -> ChangesParts:
        """The changes as plain values, `Changes(*parts)` again on the other side."""
        return self.zones, self.serial, dict(self.names)


def diff_tables(old: Table, new: Table) -> Changes | None:
    """The changed names alone, None if every question has the same answer in both. A new serial alone is no change.
    Raises ValueError if domain or datacentre differ: then the whole table must be taken."""
    if old.head != new.head:
        raise ValueError(f"tables of different domains: {old.head!r}, {new.head!r}")
    names: dict[bytes, Records | None] = {name: None for name in old.names if name not in new.names}
    names.update((name, records) for name, records in new.names.items() if old.names.get(name) != records)
    return Changes(new.zones, new.serial, names) if names or old.zones != new.zones else None


def apply_changes(table: Table, changes: Changes) -> Table:
    """`table` with `changes` made: `apply_changes(old, diff_tables(old, new))` answers as `new`."""
    names = dict(table.names)
    for name, records in changes.names.items():
        if records is None:
            names.pop(name, None)
        else:
            names[name] = records
    return Table(table.head, changes.zones, changes.serial, names)
