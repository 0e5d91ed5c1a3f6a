# SPDX-License-Identifier: Apache-2.0
"""Records counted by who says them -> a Table and what changes of it.

Several may say the same record of a name, and it stands until the last has taken it back. A name whose last record goes stays as long as
others lie below it: names that exist only because of others (RFC 8020) have NODATA, else a resolver that walks down from the zone takes
everything below for absent. Of the hosts that an address is said to be, one is shown: that of the lowest type.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable

from plait.dns import message as m
from plait.dns.records import is_name
from plait.dns.table import HIDDEN, Changes, Delta, Head, Records, Table, changed_records, delta
from plait.dns.view import bound

Entry = tuple[bytes, m.Record]
"""Name and record. A type below 0 is a pointer."""
NODE_POINTER, CONTAINER_POINTER, SERVICE_POINTER = -3 << 48, -2 << 48, -1 << 48
"""PTR records, the first to be shown; the number of a network may be added, to which it is bound."""
_NETWORK = (1 << 48) - 1


class Names:
    """The table and the counts behind it. `apexes` are names that exist whatever is said of them; zones are among them."""

    def __init__(self, head: Head, zones: frozenset[bytes], serial: int, apexes: Iterable[bytes]) -> None:
        self.table = Table(head, zones, serial, {})
        self._more: Counter[Entry] = Counter()
        """How often a record is said beyond the first time."""
        self._pointers: dict[bytes, list[m.Record]] = {}
        self._below: Counter[bytes] = Counter()
        """Names directly below a name."""
        self._fixed = frozenset((*zones, *apexes))
        self._changed: dict[bytes, Records | None] = {}
        """What names changed were before; None = absent."""
        for name in sorted(self._fixed):
            self._make(name)

    def change(self, gone: Iterable[Entry], come: Iterable[Entry], serial: int) -> Changes | None:
        """Take back the entries `gone`, which were given before, and say those that have come. Names that cannot be asked for (an empty
        label, one over 63 bytes) are left out. None if every question has the same answer as before."""
        counts: defaultdict[bytes, Counter[m.Record]] = defaultdict(Counter)
        for sign, entries in ((-1, gone), (1, come)):
            for name, record in entries:
                counts[name][record] += sign
        for name, moved in counts.items():
            if name.startswith(HIDDEN) or is_name(name):
                self._settle(name, self._unfolded(name, moved))
        for name in [name for name in self._changed if not self.table.names.get(name, ((),))]:
            self._drop_empty(name)
        return self._taken(serial)

    def _unfolded(self, name: bytes, moved: Counter[m.Record]) -> Counter[m.Record]:
        """`moved` with the pointers among it replaced by the PTR record that they come to."""
        if not any(rtype < 0 for rtype, _ in moved):
            return moved
        held = self._pointers.setdefault(name, [])
        result: Counter[m.Record] = Counter({record: count for record, count in moved.items() if record[0] >= 0})
        before = held[:1]
        for record, count in moved.items():
            for _ in range(count if record[0] < 0 else 0):
                insort(held, record)
            for _ in range(-count if record[0] < 0 else 0):
                held.remove(record)
        for sign, shown in ((-1, before), (1, held[:1])):
            for kind, target in shown:
                network = kind & _NETWORK
                result[bound((m.PTR, target), network)] += sign
        if not held:
            del self._pointers[name]
        return result

    def _settle(self, name: bytes, moved: Counter[m.Record]) -> None:
        """Change the records of one name by how often each is said more or less often."""
        records = self.table.names.get(name, ())
        have = set(records)
        gone: list[m.Record] = []
        come: list[m.Record] = []
        for record, count in moved.items():
            total = (record in have) + self._more[name, record] + count
            if total > 1:
                self._more[name, record] = total - 1
            else:
                del self._more[name, record]
            if (total > 0) != (record in have):
                (come if total > 0 else gone).append(record)
        if gone or come:
            self._make(name)
            self._changed.setdefault(name, records)
            self.table.names[name] = changed_records(records, (tuple(gone), tuple(come)))

    def _make(self, name: bytes) -> None:
        """Have `name` exist, and with it those above."""
        while name not in self.table.names:
            self.table.names[name] = ()
            self._changed.setdefault(name, None)
            above = self._above(name)
            if above is None:
                return
            self._below[above] += 1
            name = above

    def _drop_empty(self, name: bytes | None) -> None:
        """Drop `name` if nothing is said of it or below it, and then perhaps those above."""
        while name is not None and not self.table.names.get(name, ((),)) and not self._below[name] and name not in self._fixed:
            self._changed.setdefault(name, ())
            del self.table.names[name], self._below[name]
            name = self._above(name)
            if name is not None:
                self._below[name] -= 1

    def _above(self, name: bytes) -> bytes | None:
        """The next name above `name` in its zone; None for one of no zone, or right below the zone."""
        above = name.partition(b".")[2]
        if name in self.table.zones or above in self.table.zones:
            return None
        rest = above
        while rest and rest not in self.table.zones:
            rest = rest.partition(b".")[2]
        return above if rest else None

    def _taken(self, serial: int) -> Changes | None:
        """What has changed since the last time."""
        names: dict[bytes, Delta | None] = {}
        for name, before in self._changed.items():
            now = self.table.names.get(name)
            if now == before:
                continue
            names[name] = None if now is None else delta(before or (), now)
        self._changed = {}
        if not names:
            return None
        self.table.serial = serial
        return Changes(self.table.zones, serial, names)
