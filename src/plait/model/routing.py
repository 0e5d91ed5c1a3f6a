# SPDX-License-Identifier: Apache-2.0
"""Tables of routes that others announce, and the rules that lead packets to a table.

Data in: what a host's routing file says (`routing/settings.py`). Data out: what a plan and the kernel room need of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from plait.model.addr import IPNetwork
from plait.model.hostlinks import Key

RULE_PRIORITY = 11200
"""The first of plait's rules of routing: behind the table of the host's own addresses, before `main`."""
TABLES = range(1_120_000, 1_130_000)
"""Numbers of kernel tables that are plait's."""
MAIN_TABLE = 254


def table_number(name: str) -> int:
    """The kernel's table for the one that is called so: the same on every host and after every change of the file."""
    return TABLES[crc32(name.encode()) % len(TABLES)]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """A table of routes of its own for what containers on `networks` send. `outside`: destinations that may be learned, collapsed, of both
    families; they see containers by their own addresses, and may begin to talk to them."""

    name: str
    networks: tuple[str, ...]
    outside: tuple[IPNetwork, ...] = ()

    @property
    def number(self) -> int:
        return table_number(self.name)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by which the kernel chooses a table (ip-rule(8)), of protocol 112 and the family of `source`: packets from `source` to `dst`
    (None: to anybody) are routed by `table`, or (0) refused as unreachable. `specific`: a default route there does not count.
    `mark`: those alone that the firewall gave it, 0 for all. It is all key, and never changed."""

    priority: int
    source: IPNetwork
    table: int = 0
    dst: IPNetwork | None = None
    specific: bool = False
    mark: int = 0

    @property
    def key(self) -> Key:
        which = f"{self.source}{f' mark {self.mark}' if self.mark else ''}"
        return ("rule", str(self.priority), which, str(self.dst or "all"), f"{self.table}{'+' if self.specific else ''}")
