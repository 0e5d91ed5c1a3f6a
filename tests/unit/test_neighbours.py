# SPDX-License-Identifier: Apache-2.0
"""Conditions of the kernel's tables of neighbours, by what the kernel says of them."""

from __future__ import annotations

import struct

import pytest

from plait.agent.health import Health
from plait.agent.neighbours import FULL, LASTS_S, SCARCE, Neighbours
from plait.kernel.linux.neightables import RTM_NEWNEIGHTBL, NeighTable, decode_table
from plait.kernel.linux.netlink import NetlinkParseError, attr, attr_u32


class Watched:
    def __init__(self) -> None:
        self.now, self.health = 0.0, Health(lambda: 0.0)
        self.watch = Neighbours(self.health, list, lambda: self.now)

    def sees(self, *tables: NeighTable, after_s: float = 5.0) -> dict[tuple[str, str], str]:
        self.now += after_s
        self.watch.judge(tables)
        return {(a.condition.code, a.subject): a.text for a in self.health.active()}


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_table_that_refuses_is_full_until_it_has_not_for_a_minute(family: str) -> None:
    watched = Watched()
    table = lambda entries, squeezed, refused: NeighTable(family, entries, 1024, squeezed, refused)  # type: ignore[arg-type]  # noqa: E731
    held = f"the machine's namespaces together hold {{}} of 1024 neighbours of {family}"
    assert watched.sees(table(100, 3, 7)) == {}, "what was before the start is over"
    assert watched.sees(table(1023, 3, 7)) == {}, "permanent ones of others, it seems"
    assert watched.sees(table(921, 4, 7)) == {}
    assert watched.sees(table(922, 4, 7)) == {(SCARCE, family): held.format(922)}
    assert watched.sees(table(1100, 5, 9)) == {(FULL, family): f"{held.format(1024)}; 2 were turned away lately"}
    assert "3 were turned away" in watched.sees(table(600, 5, 10))[FULL, family], "it made room, for a moment"
    assert (FULL, family) in watched.sees(table(600, 5, 10), after_s=LASTS_S - 1)
    assert watched.sees(table(1000, 5, 10)) == {}
    assert "1 were" in watched.sees(table(600, 5, 11))[FULL, family], "counted anew"


def test_families_are_judged_by_themselves() -> None:
    watched = Watched()
    assert watched.sees(NeighTable("IPv4", 0, 1024, 0, 0), NeighTable("IPv6", 1000, 1024, 0, 0)) == {}
    assert watched.sees(NeighTable("IPv4", 0, 1024, 1, 0), NeighTable("IPv6", 1000, 1024, 1, 0)).keys() == {(SCARCE, "IPv6")}


def test_what_the_kernel_sends_is_read() -> None:
    stats = struct.pack("=11Q", *range(100, 111))
    whole = attr(1, b"arp_cache\0") + attr_u32(4, 1024) + attr(5, struct.pack("=HHI", 4, 336, 118) + b"\0" * 24) + attr(7, stats)
    assert decode_table(RTM_NEWNEIGHTBL, b"\2\0\0\0" + whole) == NeighTable("IPv4", 118, 1024, 109, 110)
    assert decode_table(RTM_NEWNEIGHTBL, b"\2\0\0\0" + attr(1, b"arp_cache\0")) is None, "a link's parameters"
    assert decode_table(RTM_NEWNEIGHTBL, b"\x0c\0\0\0" + whole) is None, "DECnet had one, too"
    old = attr_u32(4, 1024) + attr(5, struct.pack("=HHI", 4, 336, 118)) + attr(7, stats[:80])
    assert decode_table(RTM_NEWNEIGHTBL, b"\2\0\0\0" + old) == NeighTable("IPv4", 118, 1024, 109, 0), "before Linux 4.3"
    assert decode_table(3, b"") is decode_table(RTM_NEWNEIGHTBL, b"\2") is None
    with pytest.raises(NetlinkParseError):
        decode_table(RTM_NEWNEIGHTBL, b"\2\0\0\0" + b"\1\0\1\0")
