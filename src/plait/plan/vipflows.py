# SPDX-License-Identifier: Apache-2.0
"""Connections to virtual addresses whose backend is gone: they are forgotten, so that they end instead of falling silent.

Data in: operations on the table `inet plait`. Data out: rules as of `model.flows`. The next packet of such a connection begins another one
for the kernel, and comes to a backend that knows nothing of it, or to nobody: either way TCP is told so by a reset, and a client that goes
on sending UDP is answered again. Who drains or is not well keeps what it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from ipaddress import ip_address
from typing import cast

from plait.model.addr import Protocol
from plait.model.flows import PortRule, Target
from plait.model.nfttext import difference
from plait.model.objects import NFT_FAMILY, NftSet, Op, Plan
from plait.plan.dual import V4, V6, Family
from plait.plan.vips import ENDS, PUBLISHED, VIRTUAL


def orphaned(ops: Iterable[Op], now: Plan) -> list[PortRule]:
    """A rule for each address and port of services that may have led to a backend that went. `now` is the whole plan."""
    done = {op.subject.name: op for op in ops if isinstance(op.subject, NftSet) and op.subject.family == NFT_FAMILY}
    return [rule for family in (V4, V6) for rule in _orphaned(family, done, now)]


def _orphaned(family: Family, done: dict[str, Op], now: Plan) -> list[PortRule]:
    ends, slots = done.get(f"{ENDS}{family.end}"), (VIRTUAL[family].slot, PUBLISHED[family].slot)
    gone, _ = difference(_before(ends), _after(ends))
    if not gone:
        return []
    led: defaultdict[str, set[Target]] = defaultdict(set)
    missed = set(gone)
    for element in (element for name, op in done.items() if name.startswith(slots) for element in difference(_before(op), _after(op))[0]):
        place, _, target = element.partition(" : ")
        end = end_of(place, target)
        if end in gone:
            led[place].add(_target(end))
            missed.discard(end)
    for place in _places(family, done, now) if missed else ():
        led[place] |= {_target(end) for end in missed if _proto(end) == _proto(place)}
    return [_rule(family, place, targets) for place, targets in sorted(led.items()) if targets]


def _rule(family: Family, place: str, targets: Iterable[Target]) -> PortRule:
    *address, proto, port = place.split(" . ")
    host = ip_address(address[0]) if address else None
    return PortRule(cast(Protocol, proto), int(port), family.anywhere.version, host=host, led=frozenset(targets))


def _places(family: Family, done: dict[str, Op], now: Plan) -> set[str]:
    """All that are or were a moment ago: one that drained before it went was led to by none of the last slots."""
    elements = {element for obj in now.values() if isinstance(obj, NftSet) and _leads(family, obj.name) for element in obj.elements}
    elements |= {element for name, op in done.items() if _leads(family, name) for element in _before(op)}
    return {element.partition(" : ")[0] for element in elements}


def _leads(family: Family, name: str) -> bool:
    """Whether it is a map of places."""
    return any(name == table.places or name.startswith(table.slot) for table in (VIRTUAL[family], PUBLISHED[family]))


def end_of(place: str, target: str) -> str:
    """The container's address, protocol and port that a place leads to, as an element of a set."""
    address, _, port = target.partition(" . ")
    return f"{address} . {_proto(place)} . {port}"


def _proto(place: str) -> str:
    return place.split(" . ")[-2]


def _target(end: str) -> Target:
    address, _, port = end.split(" . ")
    return ip_address(address), int(port)


def _before(op: Op | None) -> frozenset[str]:
    return op.old.elements if op is not None and isinstance(op.old, NftSet) else frozenset()


def _after(op: Op | None) -> frozenset[str]:
    return op.new.elements if op is not None and isinstance(op.new, NftSet) else frozenset()
