# SPDX-License-Identifier: Apache-2.0
"""What is read from nft's text."""

from __future__ import annotations

import pytest

from plait.model.nfttext import sets_in


@pytest.mark.parametrize(
    ("rule", "sets"),
    [
        ("ip saddr @pools ip daddr @nodes counter drop", ["pools", "nodes"]),
        ("ip saddr . ip daddr @same6 jump within", ["same6"]),
        ('fwd ip to ip daddr & 255.255.255.0 map @next device "pl-x1"', ["next"]),
        ("ip daddr != 198.18.0.1 fib daddr type local @th,96,24 { 0x1, 0x5 } counter drop", []),
        ("icmpv6 type nd-neighbor-advert @nh,384,128 != 0xfe80 goto @forgers", ["forgers"]),
    ],
)
def test_a_place_of_the_packet_is_no_set(rule: str, sets: list[str]) -> None:
    assert sets_in(rule) == sets
