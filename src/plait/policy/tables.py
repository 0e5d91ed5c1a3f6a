# SPDX-License-Identifier: Apache-2.0
"""What ordered rules make of every protocol and port at once, by painting: each rule takes what is still undecided of its ports."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plait.model.addr import Protocol
from plait.model.policy import LAST_PORT, PROTOCOLS, Action, Ports, Tier
from plait.policy.workloads import NamedPorts

Span = tuple[int, int]
"""First and last, both included."""
_TIERS: tuple[Tier, ...] = ("Admin", "NetworkPolicy", "Baseline")


@dataclass(frozen=True, slots=True)
class Table:
    """What passes: spans of ports by protocol, ascending, none touching the next; `other`: every protocol without ports."""

    passing: tuple[tuple[Protocol, int, int], ...]
    other: bool

    @property
    def whole(self) -> bool:
        """Whether everything passes."""
        return self.other and self.passing == _ALL

    @property
    def empty(self) -> bool:
        return not self.other and not self.passing

    def stopped(self) -> tuple[tuple[Protocol, int, int], ...]:
        """The spans that do not pass."""
        found: list[tuple[Protocol, int, int]] = []
        for protocol in PROTOCOLS:
            free = [(0, LAST_PORT)]
            for _, first, last in (span for span in self.passing if span[0] == protocol):
                carve(free, first, last)
            found += [(protocol, first, last) for first, last in free]
        return tuple(found)


_ALL = tuple((protocol, 0, LAST_PORT) for protocol in PROTOCOLS)
EVERYTHING = Table(_ALL, True)


def both(one: Table, other: Table) -> Table:
    """What passes by both."""
    if one.whole or other.whole:
        return one if other.whole else other
    passing: list[tuple[Protocol, int, int]] = []
    for protocol in PROTOCOLS:
        free = [(first, last) for its, first, last in one.passing if its == protocol]
        taken = [piece for its, first, last in other.passing if its == protocol for piece in carve(free, first, last)]
        passing += [(protocol, first, last) for first, last in merged(taken)]
    return Table(tuple(passing), one.other and other.other)


def in_words(table: Table) -> str:
    """What passes: `everything`, `nothing`, or protocols with their ports."""
    if table.whole or table.empty:
        return "everything" if table.whole else "nothing"
    spans: dict[str, list[str]] = {}
    for protocol, first, last in table.passing:
        spans.setdefault(protocol, []).append(str(first) if first == last else f"{first}-{last}")
    words = [f"{protocol} {', '.join(ports)}" if ports != [f"0-{LAST_PORT}"] else protocol for protocol, ports in spans.items()]
    return "; ".join([*words, *(["protocols without ports"] if table.other else [])])


@dataclass(frozen=True, slots=True)
class Step:
    """One rule as far as ports go."""

    tier: Tier
    action: Action
    ports: tuple[Ports, ...]


def table_of(steps: Sequence[Step], isolated: bool, named: NamedPorts) -> Table:
    """`steps` in order, `isolated`: whether the tier NetworkPolicy lets nothing pass by itself; `named`: the ports of the destination."""
    passing = [(p, first, last) for p in PROTOCOLS for first, last in _painted([(s, _spans(s.ports, p, named)) for s in steps], isolated)]
    other = _painted([(step, [] if step.ports else [(0, 0)]) for step in steps], isolated, 0)
    return Table(tuple(passing), bool(other))


def _painted(steps: Iterable[tuple[Step, list[Span]]], isolated: bool, last: int = LAST_PORT) -> list[Span]:
    """What is accepted of 0 to `last`."""
    by_tier: Mapping[Tier, list[tuple[Step, list[Span]]]] = {tier: [] for tier in _TIERS}
    for step, spans in steps:
        by_tier[step.tier].append((step, spans))
    undecided, accepted = [(0, last)], list[Span]()
    for tier in _TIERS:
        skipped: list[Span] = []
        for step, spans in by_tier[tier]:
            taken = [piece for first, end in spans for piece in carve(undecided, first, end)]
            if step.action != "Deny":
                (accepted if step.action == "Accept" else skipped).extend(taken)
        if tier == "NetworkPolicy" and isolated:
            undecided = []
        undecided = merged([*undecided, *skipped])
    return merged([*accepted, *undecided])


def _spans(ports: tuple[Ports, ...], protocol: Protocol, named: NamedPorts) -> list[Span]:
    if not ports:
        return [(0, LAST_PORT)]
    found: list[Span] = []
    for one in ports:
        if one.protocol not in ("", protocol):
            continue
        if one.name:
            found += [(number, number) for its, number in named.get(one.name, ()) if its == protocol]
        else:
            found.append((one.first, one.last))
    return found


def carve(free: list[Span], first: int, last: int) -> list[Span]:
    """Take what lies from `first` to `last` out of ascending spans; returns it."""
    at = bisect_left(free, (first, -1))
    if at and free[at - 1][1] >= first:
        at -= 1
    end, taken, kept = at, list[Span](), list[Span]()
    while end < len(free) and free[end][0] <= last:
        low, high = free[end]
        taken.append((max(low, first), min(high, last)))
        kept += [(low, first - 1)] if low < first else []
        kept += [(last + 1, high)] if high > last else []
        end += 1
    free[at:end] = kept
    return taken


def merged(spans: Iterable[Span]) -> list[Span]:
    """Ascending, those that touch as one."""
    found: list[Span] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found
