# SPDX-License-Identifier: Apache-2.0
"""What of the table is seen by who asks: containers see each other's names on the networks that they share, everybody else sees all.

A record that is said on one network alone is *bound*: its type carries the network's number from bit 16 on. Who asks is found by the
address that the query came from, in entries of the table that no client can ask for: an address leads to the
sandboxes that have it, a sandbox to the numbers of its networks. An address that is in no such entry (of a host, of a machine
without agent, of a container on another host) sees all. The child loads this: no heavy imports.
"""

from __future__ import annotations

from plait.dns.message import Record
from plait.dns.table import HIDDEN, Records, Table

_NETWORK = 16
_TYPE = (1 << _NETWORK) - 1
Networks = frozenset[int]
"""Numbers of networks, with `OUTSIDE` if one of them leads out of the cluster."""
OUTSIDE = 0


def bound(record: Record, network: int) -> Record:
    """The record as said on the network of that number (1 or more) alone."""
    return record[0] | network << _NETWORK, record[1]


def asker_name(address: bytes) -> bytes:
    """The table's name for who asks from `address` (packed)."""
    return HIDDEN + address.hex().encode()


def sandbox_name(digest: bytes) -> bytes:
    """The table's name for a sandbox with that digest, whose length is no address's."""
    return HIDDEN + digest.hex().encode()


def asker_entries(address: bytes, digest: bytes, network: int, *, internal: bool) -> list[tuple[bytes, Record]]:
    """That the sandbox has the address, on the network of that number, which leads outside unless it is `internal`."""
    numbers = [network] if internal else [OUTSIDE, network]
    return [(asker_name(address), (0, digest)), *((sandbox_name(digest), (number, b"")) for number in numbers)]


def networks_of(table: Table, address: bytes) -> Networks | None:
    """The networks of who asks from `address` (packed); None: it sees all."""
    sandboxes = table.names.get(asker_name(address))
    if not sandboxes:
        return None
    return frozenset(number for _, digest in sandboxes for number, _ in table.names.get(sandbox_name(digest), ()))


class View:
    """How the client at `source` (a packed address, b"" if it is not known) sees the table. `used` tells whether anything that it looked at
    is seen by some and not by others."""

    __slots__ = ("networks", "source", "used")

    def __init__(self, networks: Networks | None = None, source: bytes = b"") -> None:
        self.networks, self.source, self.used = networks, source, False

    def of(self, records: Records | None) -> Records | None:
        """What it sees of all records of a name, in order; None if it sees none of what there is."""
        if not records or records[-1][0] <= _TYPE:  # in order: if any are bound, the last is
            return records
        self.used = True
        seen = {(rtype & _TYPE, rdata) for rtype, rdata in records if self._sees(rtype >> _NETWORK)}
        return tuple(sorted(seen)) or None

    def leads_out(self) -> bool:
        """Whether names outside may be asked for on its behalf: who is on internal networks alone is told nothing from there."""
        self.used = True
        return self.networks is None or OUTSIDE in self.networks

    def _sees(self, network: int) -> bool:
        return not network or self.networks is None or network in self.networks
