# SPDX-License-Identifier: Apache-2.0
"""Names of hosts as rules have them: `api.example.com`, which is that name alone, or `*.example.org`, which is every name below
`example.org`, of one label more or of several, and not that one itself (NPEP-133, `DomainName`). Lower case, without a final dot.

The DNS child imports this module and must stay small.
"""

from __future__ import annotations

from collections.abc import Iterator

ANY_BELOW = "*."
"""With a name behind it, each name below that one."""


def patterns_of(name: str) -> Iterator[str]:
    """Everything that a rule may have and that `name` meets: itself, and `*.` with each name above it. Those of a pattern are what all
    its names meet."""
    yield name
    above = name.removeprefix(ANY_BELOW).partition(".")[2]
    while above:
        yield f"{ANY_BELOW}{above}"
        above = above.partition(".")[2]
