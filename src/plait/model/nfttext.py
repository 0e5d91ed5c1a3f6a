# SPDX-License-Identifier: Apache-2.0
"""Parts of what nft prints of chains, sets and maps."""

from __future__ import annotations

import functools
import re

_SETS = re.compile(r"@([\w-]+)(?![\w-]*,)")
"""Not what a rule reads at a place of the packet, like `@th,96,24`."""


@functools.lru_cache(8)
def difference(before: frozenset[str], now: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """What has gone and what has come. Asked for again by all who do something about it, of sets of thousands."""
    fresh = now - before
    return before - now if len(before) + len(fresh) != len(now) else frozenset(), fresh


def element_key(element: str) -> str:
    """What an element of a set or map is found by, without what is there: a value, or a limit."""
    return element.partition(" : ")[0].partition(" limit rate ")[0]


def hooked_device(hook: str) -> str:
    """The link whose frames a chain sees that is declared like that, "" of none."""
    return hook.partition(' device "')[2].partition('"')[0]


def sets_in(rule: str) -> list[str]:
    """The sets and maps that a rule names."""
    return _SETS.findall(rule)
