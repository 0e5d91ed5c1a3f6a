# SPDX-License-Identifier: Apache-2.0
"""Which addresses a resolver's response gives for a name that somebody wants to know the addresses of.

The name is the one that was asked for. Its addresses may stand behind aliases, if the same response has these too; what an alias leads to
is no name that was asked for, and nothing is learned of it (as Cilium does it; NPEP-133, "Expected Behavior", asks for no more).
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.dns import message as m
from plait.model.domains import patterns_of

Addresses = list[tuple[bytes, int]]
"""Packed, each with the seconds for which it may be kept."""
_FAMILIES = (m.A, m.AAAA)
_IN_NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_LONGEST = (1 << 31) - 1
"""Seconds (RFC 2181, section 8)."""


class Heeded:
    """The names that are wanted, as `model.domains` has them."""

    __slots__ = ("_patterns",)

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._patterns = frozenset(patterns)

    def learned(self, query: bytes, response: bytes) -> tuple[str, Addresses] | None:
        """The name that `query` asks for, and the addresses that `response` gives for it; None if that is no name that is wanted, or there
        is no address."""
        if not self._patterns or response[3] & 0xF != m.NOERROR:
            return None
        end = m.question_end(query)
        if int.from_bytes(query[end - 4 : end - 2], "big") not in _FAMILIES:
            return None
        wire = query[m.HEADER : end - 4].lower()
        name = _plain(wire)
        if not name or self._patterns.isdisjoint(patterns_of(name)):
            return None
        found = _addresses(wire, response)
        return (name, found) if found else None


def _plain(wire: bytes) -> str:
    """The name as text; "" if there is something in it that no name of a host has, such as a dot inside a label, which would make it
    another name."""
    name = m.dotted(wire)
    try:
        plain = m.wire_name(name) == wire and not name.translate(None, _IN_NAMES)
    except ValueError:
        return ""
    return name.decode() if plain else ""


def _addresses(wire: bytes, response: bytes) -> Addresses:
    """Those of the name, along its aliases; each for as long as all that leads to it may be kept."""
    try:
        records = m.read_addresses(response)
    except m.Malformed:
        return []
    aliases = {owner.lower(): (target.lower(), ttl) for owner, rtype, ttl, target in records if rtype == m.CNAME}
    at, least = wire, _LONGEST
    while at in aliases:
        at, ttl = aliases.pop(at)  # an alias that leads back leads nowhere
        least = min(least, ttl)
    return [(data, min(ttl, least)) for owner, rtype, ttl, data in records if rtype in _FAMILIES and owner.lower() == at]
