# SPDX-License-Identifier: Apache-2.0
"""What the DNS child answers from: dotted name -> records, and what turns one such table into the next.

`zone.Zone` keeps a Table in the agent; it crosses to the child as a tuple of plain values, and from then on what changes of it. Kept
free of heavy imports because the child loads it (see `message`).
"""

from __future__ import annotations

from collections.abc import Mapping

from plait.dns.message import Record

Records = tuple[Record, ...]
Head = tuple[bytes, bytes]
Delta = tuple[Records, Records]
"""Records of a name that are gone, and those that have come."""
TableParts = tuple[Head, frozenset[bytes], int, dict[bytes, Records]]
ChangesParts = tuple[frozenset[bytes], int, dict[bytes, Delta | None]]
HIDDEN = b"WHO:"
"""What the names begin with that nobody can ask for, whose names are all in lower case (see `view`)."""


class Table:
    """A directory of names, changed by `apply_changes` alone.

    `head` is (domain, datacentre), both dotted; `zones` are the dotted suffixes below which a name that is not in `names`
    does not exist at all; `serial` goes into SOA records; `names` maps canonical dotted names (see `grammar`) to their
    records in order, () for a name that only has others below it. What of them a client sees, `view` tells.
    """

    __slots__ = ("head", "names", "serial", "zones")

    def __init__(self, head: Head, zones: frozenset[bytes], serial: int, names: dict[bytes, Records]) -> None:
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
"""Nobody changes this one."""


class Changes:
    """What turns one table into another with the same head: `names` maps to what changes of its records, None for a name that is gone.
    A name that is new has a Delta without any that are gone."""

    __slots__ = ("names", "serial", "zones")

    def __init__(self, zones: frozenset[bytes], serial: int, names: Mapping[bytes, Delta | None]) -> None:
        self.zones, self.serial, self.names = zones, serial, names

    def parts(self) -> ChangesParts:
        """The changes as plain values, `Changes(*parts)` again on the other side."""
        return self.zones, self.serial, dict(self.names)


def diff_tables(old: Table, new: Table) -> Changes | None:
    """The changes from `old` to `new`, None if every question has the same answer in both. A new serial alone is no change.
    Raises ValueError if domain or datacentre differ: then the whole table must be taken."""
    if old.head != new.head:
        raise ValueError(f"tables of different domains: {old.head!r}, {new.head!r}")
    names: dict[bytes, Delta | None] = {name: None for name in old.names if name not in new.names}
    for name, records in new.names.items():
        known = old.names.get(name)
        if known != records:
            names[name] = delta(known or (), records)
    return Changes(new.zones, new.serial, names) if names or old.zones != new.zones else None


def delta(old: Records, new: Records) -> Delta:
    """What changes of the records of one name."""
    before, after = set(old), set(new)
    return tuple(record for record in old if record not in after), tuple(record for record in new if record not in before)


def changed_records(records: Records, delta: Delta) -> Records:
    """`records` after the change."""
    gone, come = delta
    return tuple(sorted((*(record for record in records if record not in gone), *come)))


def apply_changes(table: Table, changes: Changes) -> None:
    """Change `table` in place, at the cost of what changes: with `diff_tables(old, new)` made, `old` answers as `new`."""
    for name, delta in changes.names.items():
        if delta is None:
            table.names.pop(name, None)
        else:
            table.names[name] = changed_records(table.names.get(name, ()), delta)
    table.zones, table.serial = changes.zones, changes.serial
